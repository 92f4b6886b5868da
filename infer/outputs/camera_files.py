"""The cameras of a turn as tools of 3D reconstruction read them, with points of the head to start from.

Source: nerfstudio's data conventions; COLMAP, "Output Format". Both count pixels as we do, centres at +0.5.
"""

import json
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32

from geometry.cameras import Z_UP, to_colmap, to_opengl, to_z_up
from infer.outputs.mesh import Body
from infer.outputs.pictures import names
from infer.outputs.ply import encode_ply
from infer.turn import Turn

POINTS = 20_000


def nerfstudio(turn: Turn, body: Body | None) -> Iterator[tuple[str, bytes]]:
    """transforms.json beside images/: OpenGL camera-to-world in the world whose z axis is up; and sparse_pc.ply.

    Pictures are over white, so methods that draw a background of their own want to be told so.
    """
    fx, fy, cx, cy = to_colmap(turn.cameras, turn.resolution)[2][0].tolist()
    transforms = {
        **{"camera_model": "OPENCV", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy},
        **{"w": turn.resolution, "h": turn.resolution},
        "applied_transform": torch.cat([Z_UP, torch.zeros(3, 1)], dim=1).double().tolist(),
        "frames": [
            {"file_path": f"images/{name}", "transform_matrix": c2w.double().tolist()}
            for name, c2w in zip(names(turn), to_opengl(to_z_up(turn.cameras)), strict=True)
        ],
    }
    if body is not None:
        transforms["ply_file_path"] = "sparse_pc.ply"
        xyz, rgb = _points(body)
        table = np.empty(len(xyz), [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
        for name, values in zip(table.dtype.names or (), [*(xyz @ Z_UP.numpy().T).T, *rgb.T], strict=True):
            table[name] = values
        yield "sparse_pc.ply", encode_ply(table)
    yield "transforms.json", json.dumps(transforms, indent=1).encode()


def colmap(turn: Turn, body: Body | None) -> Iterator[tuple[str, bytes]]:
    """sparse/0 beside images/: one PINHOLE camera, world-to-camera poses in our world, points without tracks."""
    quaternions, translations, pinhole = to_colmap(turn.cameras, turn.resolution)
    lens = " ".join(map(repr, pinhole[0].tolist()))
    yield "sparse/0/cameras.txt", f"1 PINHOLE {turn.resolution} {turn.resolution} {lens}\n".encode()
    poses = zip(quaternions.tolist(), translations.tolist(), names(turn), strict=True)
    # The second line of an image is for its keypoints, of which there are none.
    images = [f"{number} {' '.join(map(repr, q + t))} 1 {name}\n\n" for number, (q, t, name) in enumerate(poses, 1)]
    yield "sparse/0/images.txt", "".join(images).encode()
    points = [] if body is None else zip(*(part.tolist() for part in _points(body)), strict=True)
    lines = [f"{n} {x:.6f} {y:.6f} {z:.6f} {r} {g} {b} 0\n" for n, ((x, y, z), (r, g, b)) in enumerate(points, 1)]
    yield "sparse/0/points3D.txt", "".join(lines).encode()


def _points(body: Body) -> tuple[Float32[np.ndarray, "n 3"], np.ndarray]:
    """Vertices from all over the head; every so manieth, as marching cubes goes through it in order."""
    every = slice(None, None, -(-len(body.colours) // POINTS))
    return body.mesh.vertices[every], body.colours[every]
