"""nerfstudio: per identity transforms.json, images, masks and, with a mesh, sparse_pc.ply.

Source: nerfstudio's data conventions. Cameras are camera-to-world in OpenGL axes, the world has z up, and pixel centres
lie at +0.5 as ours do. `applied_transform` is what took our world to theirs.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from exports.pictures import cameras_of, mask_png, pinhole, rows
from exports.points import points_of
from geometry.cameras import Z_UP, to_opengl, to_z_up
from manifests.dataset import Dataset
from manifests.keep import Keep, KeptIdentity


class Nerfstudio:
    """One folder per identity, ready for `ns-train splatfacto --data`."""

    def __init__(self, dataset: Dataset, keep: Keep, dest: Path):
        self.resolution, self.picture = dataset.plan.resolution, dataset.plan.members["rgb"].rpartition(".")[2]

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        folder, frames = f"{identity.number:07d}", []
        cameras = to_z_up(cameras_of(identity))
        pictures = zip(*identity.members("rgb", "alpha"), to_opengl(cameras), strict=True)
        for view, (rgb, alpha, c2w) in zip(identity.views.column("view").to_pylist(), pictures, strict=True):
            frame = {"file_path": f"images/{view:03d}.{self.picture}", "mask_path": f"masks/{view:03d}.png"}
            yield f"{folder}/{frame['file_path']}", rgb
            yield f"{folder}/{frame['mask_path']}", mask_png(alpha)
            frames.append({**frame, "transform_matrix": rows(c2w)})
        fx, fy, cx, cy = pinhole(cameras, self.resolution)
        size = {"w": self.resolution, "h": self.resolution}
        lens = {"camera_model": "OPENCV", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, **size}
        transforms = {**lens, "applied_transform": rows(torch.cat([Z_UP, torch.zeros(3, 1)], dim=1)), "frames": frames}
        if (mesh := identity.mesh()) is not None:
            transforms["ply_file_path"] = "sparse_pc.ply"
            yield f"{folder}/sparse_pc.ply", points_of(identity, mesh).ply(Z_UP)
        yield f"{folder}/transforms.json", json.dumps(transforms, indent=1).encode()

    def finish(self, root: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield from ()
