"""FaceScape (experimental): its multi-view pictures, as the documentation describes them.

Source: github.com/zhuhao-nju/facescape, doc_mview_model.

Layout: 122/4_anger/0.jpg ... N.jpg and params.json, which holds for each view its `K`, `Rt` (world to camera, OpenCV axes),
`distortion` (k1 k2 p1 p2 k3), `width`, `height` and `valid`; views that are not valid have no reliable camera and are left out.
There are no masks and one moment per expression.
"""

from functools import partial
from pathlib import Path

import numpy as np

from infer.evaluation.importers.stage import Shot, StagePicture, drawn, people_in, read_json, read_rgb, rigid
from manifests.errors import UserError


class FaceScape:
    """A copy of FaceScape's multi-view pictures."""

    def __init__(self, root: Path, sequence: str, frame: int, seed: int):
        """Find the people; raises MissingFile or UserError if there are none."""
        if frame > 0:
            raise UserError(f"--stage.frame is {frame}; an expression of FaceScape is one moment, leave it out")
        self.root, self.sequence, self.seed = root, sequence, seed
        self.names = people_in(
            root, lambda p: bool(self._expressions(p)), "122/4_anger/0.jpg with 122/4_anger/params.json"
        )

    def shots(self, name: str) -> list[Shot]:
        """The valid pictures of one expression."""
        folder = drawn(self._expressions(self.root / name), self.seed, "sequence", name)
        params, shots = read_json(folder / "params.json"), []
        for view in sorted(int(key.removesuffix("_K")) for key in params if key.endswith("_K")):
            try:
                valid, K, Rt, distortion, width = (
                    params[f"{view}_{part}"] for part in ("valid", "K", "Rt", "distortion", "width")
                )
            except KeyError as error:
                raise UserError(f"{folder / 'params.json'} has no {error}") from error
            if not valid:
                continue
            shots.append(
                Shot(
                    str(view),
                    partial(_load, folder / f"{view}.jpg", int(width)),
                    np.array(K, np.float64)[:3, :3],
                    rigid(Rt, f"{folder / 'params.json'}, {view}_Rt"),
                    np.array(distortion, np.float64).ravel(),
                )
            )
        return shots

    def _expressions(self, person: Path) -> list[Path]:
        there = sorted(p.parent for p in person.glob("*/params.json"))
        return [p for p in there if not self.sequence or p.name == self.sequence]


def _load(file: Path, width: int) -> StagePicture:
    rgb = read_rgb(file)
    if rgb.shape[1] != width:
        raise UserError(f"{file} is {rgb.shape[1]} px wide, its camera is of {width}")
    return StagePicture(rgb, None)
