"""EG3D and PanoHead: images/ with dataset.json (`--data`, `--img_data`), and masks/ of the same names (`--seg_data`).

Source: EG3D and PanoHead, training/dataset.py. A label is 25 numbers: OpenCV camera-to-world and K normalised by the
image size, row by row. EG3D's horizontal flip (`--mirror`) flips pictures and not labels, so it must be off.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from exports.pictures import cameras_of
from geometry.cameras import eg3d_labels
from manifests.dataset import Dataset
from manifests.index import Subset
from manifests.pictures import decode_picture, encode_picture
from manifests.subset import KeptIdentity, kept_identities


class Eg3d:
    """Square PNGs in one folder per identity, and one table of labels for all of them."""

    def __init__(self, dataset: Dataset, subset: Subset, dest: Path):
        self.dataset, self.subset = dataset, subset

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        for name, rgb, alpha in zip(_names(identity), *identity.members("rgb", "alpha"), strict=True):
            yield f"images/{name}", encode_picture(decode_picture(rgb))
            yield f"masks/{name}", alpha

    def finish(self, root: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
        yield "images/dataset.json", self._labels()

    def _labels(self) -> Iterator[bytes]:
        """{"labels": [[file, [25 numbers]], ...]} in pieces, because a million views are 400 MB of text."""
        before = '{"labels": [\n'
        for identity in kept_identities(self.dataset, self.subset, self.subset.identities.tolist()):
            labels = eg3d_labels(cameras_of(identity)).double().tolist()
            for name, label in zip(_names(identity), labels, strict=True):
                yield f"{before}{json.dumps([name, label])}".encode()
                before = ",\n"
        yield b"\n]}\n"


def _names(identity: KeptIdentity) -> list[str]:
    return [f"{identity.number:07d}/{key}.png" for key in identity.views.column("key").to_pylist()]
