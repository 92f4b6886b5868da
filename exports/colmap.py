"""COLMAP's text model: per identity images, masks and sparse/0 with cameras, poses and points sampled from the mesh."""

import sys
from collections.abc import Iterator
from pathlib import Path

from exports.cameras import colmap_files
from exports.export import Layout
from exports.pictures import cameras_of, mask_png
from exports.points import points_of
from manifests.dataset import Dataset
from manifests.index import Subset
from manifests.schema import mesh_file
from manifests.subset import KeptIdentity

NO_POINTS = b"# There are no points: the dataset was generated without --save-meshes.\n"


class Colmap(Layout):
    """One folder per identity, as `colmap` and the Gaussian splatting trainers read it."""

    def __init__(self, dataset: Dataset, subset: Subset, dest: Path):
        self.resolution, self.picture = dataset.plan.resolution, dataset.plan.members["rgb"].rpartition(".")[2]
        saved = set(dataset.storage.names("meshes"))
        wanted = {mesh_file(identity).rpartition("/")[2] for identity in subset.identities.tolist()}
        if lacking := len(wanted - saved):
            print(
                f"warning: {lacking} of {len(wanted)} identities have no mesh, so their points3D.txt is empty; to "
                "initialise splats from points, generate the dataset with --save-meshes",
                file=sys.stderr,
            )

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        folder = f"{identity.number:07d}"
        names = [f"{view:03d}.{self.picture}" for view in identity.views.column("view").to_pylist()]
        for name, rgb, alpha in zip(names, *identity.members("rgb", "alpha"), strict=True):
            yield f"{folder}/images/{name}", rgb
            yield f"{folder}/masks/{name}.png", mask_png(alpha)
        files = colmap_files(cameras_of(identity), self.resolution, names, points_of(identity), NO_POINTS)
        for name, data in files:
            yield f"{folder}/{name}", data
