"""Writes cameras and points as nerfstudio and COLMAP read them, for datasets and for the views of a photo.

Sources: nerfstudio's data conventions; COLMAP, "Output Format". Both have pixel centres at +0.5, as `geometry.cameras` has.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from geometry.cameras import Z_UP, Cameras, to_colmap, to_opengl, to_z_up
from manifests.ply import encode_coloured_points


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a surface in the world of the cameras, and their colours."""

    xyz: Float32[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"]


def pinhole(cameras: Cameras, resolution: int) -> tuple[float, float, float, float]:
    """fx, fy, cx and cy in pixels, which all of these cameras share."""
    K = cameras.pixel_K(resolution)
    assert torch.equal(K, K[:1].expand_as(K)), "the views of an identity have one focal length"
    return K[0, 0, 0].item(), K[0, 1, 1].item(), K[0, 0, 2].item(), K[0, 1, 2].item()


def rows(matrix: Float[torch.Tensor, "r c"]) -> list[list[float]]:
    """A matrix for JSON, in double precision so that no reader shows the noise of a float's shortest decimal."""
    return matrix.double().tolist()


def nerfstudio_files(
    cameras: Cameras, resolution: int, frames: Sequence[dict[str, Any]], points: Points | None
) -> Iterator[tuple[str, bytes]]:
    """sparse_pc.ply where there are points, and transforms.json: OpenGL camera-to-world matrices in a world with z up.

    Args:
        frames: the fields of each view besides its matrix, such as its `file_path`.
    """
    fx, fy, cx, cy = pinhole(cameras, resolution)
    matrices = map(rows, to_opengl(to_z_up(cameras)))
    transforms = {
        **{"camera_model": "OPENCV", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": resolution, "h": resolution},
        # The matrix that took the world of datasets to theirs.
        "applied_transform": rows(torch.cat([Z_UP, torch.zeros(3, 1)], dim=1)),
        "frames": [{**frame, "transform_matrix": c2w} for frame, c2w in zip(frames, matrices, strict=True)],
    }
    if points is not None:
        transforms["ply_file_path"] = "sparse_pc.ply"
        yield "sparse_pc.ply", encode_coloured_points(points.xyz @ Z_UP.numpy().T, points.rgb)
    yield "transforms.json", json.dumps(transforms, indent=1).encode()


def colmap_files(
    cameras: Cameras, resolution: int, names: Sequence[str], points: Points | None, no_points: bytes = b""
) -> Iterator[tuple[str, bytes]]:
    """sparse/0: one PINHOLE camera, world-to-camera poses of the named images, and points without tracks."""
    lens = " ".join(map(repr, pinhole(cameras, resolution)))
    yield "sparse/0/cameras.txt", f"1 PINHOLE {resolution} {resolution} {lens}\n".encode()
    quaternions, translations, _ = to_colmap(cameras, resolution)
    poses = zip(quaternions.tolist(), translations.tolist(), names, strict=True)
    # The second line of an image is for its keypoints, of which there are none.
    images = (f"{number} {' '.join(map(repr, q + t))} 1 {name}\n\n" for number, (q, t, name) in enumerate(poses, 1))
    yield "sparse/0/images.txt", "".join(images).encode()
    yield "sparse/0/points3D.txt", no_points if points is None else _points_text(points)


def _points_text(points: Points) -> bytes:
    pairs = zip(points.xyz.tolist(), points.rgb.tolist(), strict=True)
    lines = (f"{n} {x:.6f} {y:.6f} {z:.6f} {r} {g} {b} 0\n" for n, ((x, y, z), (r, g, b)) in enumerate(pairs, 1))
    return "".join(lines).encode()
