"""COLMAP's text model: per identity images, masks and sparse/0 with cameras, poses and points sampled from the mesh.

Source: COLMAP, "Output Format". Poses are world-to-camera with OpenCV axes as a quaternion (w first) and a translation,
and the centre of the first pixel is (0.5, 0.5), as ours is. The world is ours too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from exports.pictures import cameras_of, mask_png, pinhole
from exports.points import Points, points_of
from geometry.cameras import Cameras, to_colmap
from manifests.dataset import Dataset
from manifests.keep import Keep, KeptIdentity
from manifests.schema import mesh_file

NO_POINTS = b"# There are no points: the dataset was generated without --save-meshes.\n"


class Colmap:
    """One folder per identity, as `colmap` and the Gaussian splatting trainers read it."""

    def __init__(self, dataset: Dataset, keep: Keep, dest: Path):
        self.resolution, self.picture = dataset.plan.resolution, dataset.plan.members["rgb"].rpartition(".")[2]
        there = set(dataset.storage.names("meshes"))
        wanted = {mesh_file(identity).rpartition("/")[2] for identity in keep.identities.tolist()}
        if lacking := len(wanted - there):
            print(
                f"warning: {lacking} of {len(wanted)} identities have no mesh, so their points3D.txt is empty; to start splats "
                "from points, generate the dataset with --save-meshes",
                file=sys.stderr,
            )

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        folder, cameras = f"{identity.number:07d}", cameras_of(identity)
        names = [f"{view:03d}.{self.picture}" for view in identity.views.column("view").to_pylist()]
        for name, rgb, alpha in zip(names, *identity.members("rgb", "alpha"), strict=True):
            yield f"{folder}/images/{name}", rgb
            yield f"{folder}/masks/{name}.png", mask_png(alpha)
        mesh = identity.mesh()
        lens = " ".join(map(repr, pinhole(cameras, self.resolution)))
        yield f"{folder}/sparse/0/cameras.txt", f"1 PINHOLE {self.resolution} {self.resolution} {lens}\n".encode()
        yield f"{folder}/sparse/0/images.txt", _images(cameras, names, self.resolution)
        yield f"{folder}/sparse/0/points3D.txt", _points(points_of(identity, mesh)) if mesh else NO_POINTS

    def finish(self, root: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield from ()


def _images(cameras: Cameras, names: list[str], resolution: int) -> bytes:
    """Two lines per image, the second for its (no) keypoints."""
    quaternions, translations, _ = to_colmap(cameras, resolution)
    lines = [
        f"{number} {' '.join(map(repr, q + t))} 1 {name}\n\n"
        for number, (q, t, name) in enumerate(zip(quaternions.tolist(), translations.tolist(), names, strict=True), 1)
    ]
    return "".join(lines).encode()


def _points(points: Points) -> bytes:
    """Points without tracks: nobody matched them, they lie on the surface."""
    lines = [
        f"{number} {x:.6f} {y:.6f} {z:.6f} {r} {g} {b} 0\n"
        for number, ((x, y, z), (r, g, b)) in enumerate(zip(points.xyz.tolist(), points.rgb.tolist(), strict=True), 1)
    ]
    return "".join(lines).encode()
