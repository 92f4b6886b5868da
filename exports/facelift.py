"""FaceLift's two training layouts: six views for its diffusion model, thirty-two with cameras for its reconstructor.

Source: weijielyu/FaceLift, README and the two dataset.py. Cameras are world-to-camera with OpenCV axes in Blender's
world (z up, face to -y), which is larger than that of datasets: positions are scaled so that cameras are
2.7 away from the head.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datagen.rigs import find_rig
from exports.cameras import pinhole, rows
from exports.pictures import background_of, cameras_of, rgba_png
from geometry.cameras import to_z_up
from geometry.directions import FOCAL, RADIUS
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import Subset
from manifests.subset import KeptIdentity

LISTS = {"facelift-6": "data_mvdiff", "facelift-32": "data_gslrm"}
VALIDATION = 20
"""Every 20th identity is for validation."""


class Facelift:
    """One folder per identity, and the lists of these folders."""

    def __init__(self, dataset: Dataset, subset: Subset, dest: Path):
        self.plan, self.dest, self.rig = dataset.plan, dest, dataset.plan.rig["id"]
        self.identities: list[int] = subset.identities.tolist()
        if self.rig not in LISTS:
            raise UserError(
                f"{dataset.storage.url} has rig {self.rig}; FaceLift needs --rig facelift-6 (multiview diffusion) "
                "or facelift-32 (reconstructor)"
            )
        if len(lacking := subset.identities[np.diff(subset.starts) < len(dataset.plan.rig["azimuth"])]):
            raise UserError(
                f"{len(lacking)} identities lack views (the first is {lacking[0]}), FaceLift needs all of each; "
                'select with a policy that says "whole_identities": true'
            )
        self.radius, focal = self.plan.rig.get("radius", RADIUS), self.plan.rig.get("focal", FOCAL)
        released = find_rig(self.rig)
        if (self.radius, focal) != (released.radius, released.focal):
            print(
                f"warning: {dataset.storage.url} was made with a focal length of {focal:.4g} image widths; FaceLift's heads "
                f"have {released.focal:.4g}, so generate the dataset again with this version to train on both",
                file=sys.stderr,
            )

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        sample, background = f"{identity.number:07d}", background_of(self.plan)
        folder = "images/" if self.rig == "facelift-32" else ""
        names = [f"{folder}cam_{view:03d}.png" for view in identity.views.column("view").to_pylist()]
        for name, rgb, alpha in zip(names, *identity.members("rgb", "alpha"), strict=True):
            yield f"{sample}/{name}", rgba_png(rgb, alpha, background)
        if self.rig == "facelift-32":
            yield f"{sample}/opencv_cameras.json", self._cameras(sample, identity, names)

    def finish(self, root: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The lists hold absolute folders, as in the original."""
        samples = [f"{identity:07d}" for identity in self.identities]
        train = [name for number, name in enumerate(samples) if number % VALIDATION] or samples
        for split, names in (("train", train), ("val", samples[::VALIDATION])):
            yield f"{LISTS[self.rig]}_{split}.txt", (f"{self.dest / name}\n".encode() for name in names)

    def _cameras(self, sample: str, identity: KeptIdentity, names: list[str]) -> bytes:
        cameras = to_z_up(cameras_of(identity))
        lens = dict(zip(("fx", "fy", "cx", "cy"), pinhole(cameras, self.plan.resolution), strict=True))
        size = {"w": self.plan.resolution, "h": self.plan.resolution}
        w2c = cameras.w2c
        w2c[:, :3, 3] *= RADIUS / self.radius
        frames = [{**size, **lens, "w2c": rows(each), "file_path": name} for each, name in zip(w2c, names, strict=True)]
        return json.dumps({"id": sample, "frames": frames}, indent=1).encode()
