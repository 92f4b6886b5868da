"""Outputs for tools of 3D reconstruction: cameras as nerfstudio and COLMAP read them, with points of the head, and PLY.

Source: nerfstudio's data conventions; COLMAP, "Output Format". Both have pixel centres at +0.5, as `geometry.cameras`.
"""

import json
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from geometry.cameras import Z_UP, to_colmap, to_opengl, to_z_up
from infer.outputs.pictures import file_names
from infer.outputs.surface import ColouredMesh
from infer.views import HeadViews

POINTS = 20_000
"""Most points of a cloud: enough to initialise splats or bundle adjustment, and below 1 MB."""
PLY_TYPES = {"f4": "float", "u1": "uchar"}


def nerfstudio(views: HeadViews, mesh: ColouredMesh | None) -> Iterator[tuple[str, bytes]]:
    """transforms.json and sparse_pc.ply for images/: OpenGL camera-to-world matrices in a world whose z axis is up.

    The pictures are over white, which methods that render a background must be set to.
    """
    fx, fy, cx, cy = to_colmap(views.cameras, views.resolution)[2][0].tolist()
    transforms = {
        **{"camera_model": "OPENCV", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy},
        **{"w": views.resolution, "h": views.resolution},
        "applied_transform": torch.cat([Z_UP, torch.zeros(3, 1)], dim=1).double().tolist(),
        "frames": [
            {"file_path": f"images/{name}", "transform_matrix": c2w.double().tolist()}
            for name, c2w in zip(file_names(views), to_opengl(to_z_up(views.cameras)), strict=True)
        ],
    }
    if mesh is not None:
        transforms["ply_file_path"] = "sparse_pc.ply"
        xyz, rgb = _points(mesh)
        table = np.empty(len(xyz), [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
        for name, values in zip(table.dtype.names or (), [*(xyz @ Z_UP.numpy().T).T, *rgb.T], strict=True):
            table[name] = values
        yield "sparse_pc.ply", encode_ply(table)
    yield "transforms.json", json.dumps(transforms, indent=1).encode()


def colmap(views: HeadViews, mesh: ColouredMesh | None) -> Iterator[tuple[str, bytes]]:
    """sparse/0 for images/: one PINHOLE camera, world-to-camera poses in the world of datasets, points without tracks."""
    quaternions, translations, pinhole = to_colmap(views.cameras, views.resolution)
    lens = " ".join(map(repr, pinhole[0].tolist()))
    yield "sparse/0/cameras.txt", f"1 PINHOLE {views.resolution} {views.resolution} {lens}\n".encode()
    poses = zip(quaternions.tolist(), translations.tolist(), file_names(views), strict=True)
    # The second line of an image is for its keypoints, of which there are none.
    images = [f"{number} {' '.join(map(repr, q + t))} 1 {name}\n\n" for number, (q, t, name) in enumerate(poses, 1)]
    yield "sparse/0/images.txt", "".join(images).encode()
    points = [] if mesh is None else zip(*(part.tolist() for part in _points(mesh)), strict=True)
    lines = [f"{n} {x:.6f} {y:.6f} {z:.6f} {r} {g} {b} 0\n" for n, ((x, y, z), (r, g, b)) in enumerate(points, 1)]
    yield "sparse/0/points3D.txt", "".join(lines).encode()


def _points(mesh: ColouredMesh) -> tuple[Float32[np.ndarray, "n 3"], UInt8[np.ndarray, "n 3"]]:
    """Every n-th vertex and its colour: marching cubes orders vertices by place, so these cover the whole head."""
    every = slice(None, None, -(-len(mesh.colours) // POINTS))
    return mesh.mesh.vertices[every], mesh.colours[every]


def encode_ply(table: np.ndarray) -> bytes:
    """Binary PLY of a structured array: one vertex per record, one property (little-endian float32 or uint8) per field."""
    fields = "".join(f"property {PLY_TYPES[table.dtype[name].str[1:]]} {name}\n" for name in table.dtype.names or ())
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{fields}end_header\n"
    return header.encode() + table.tobytes()
