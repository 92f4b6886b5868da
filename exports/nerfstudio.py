"""nerfstudio: per identity transforms.json, images, masks and, with a mesh, sparse_pc.ply (see `exports.cameras`)."""

from collections.abc import Iterator
from pathlib import Path

from exports.cameras import nerfstudio_files
from exports.export import Layout
from exports.pictures import cameras_of, mask_png
from exports.points import points_of
from manifests.dataset import Dataset
from manifests.index import Subset
from manifests.subset import KeptIdentity


class Nerfstudio(Layout):
    """One folder per identity, ready for `ns-train splatfacto --data`."""

    def __init__(self, dataset: Dataset, subset: Subset, dest: Path):
        self.resolution, self.picture = dataset.plan.resolution, dataset.plan.members["rgb"].rpartition(".")[2]

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        folder, frames = f"{identity.number:07d}", []
        views = identity.views.column("view").to_pylist()
        for view, rgb, alpha in zip(views, *identity.members("rgb", "alpha"), strict=True):
            frame = {"file_path": f"images/{view:03d}.{self.picture}", "mask_path": f"masks/{view:03d}.png"}
            yield f"{folder}/{frame['file_path']}", rgb
            yield f"{folder}/{frame['mask_path']}", mask_png(alpha)
            frames.append(frame)
        for name, data in nerfstudio_files(cameras_of(identity), self.resolution, frames, points_of(identity)):
            yield f"{folder}/{name}", data
