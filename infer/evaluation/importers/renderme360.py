"""RenderMe-360 (experimental): 60 cameras around a head, in .smc files, which are HDF5.

Layout as released: raw/0026/0026_e0_raw.smc with the pictures (Camera/25/color/FRAME, encoded) and anno/0026/0026_e0_anno.smc
with masks (Camera/25/mask/FRAME) and cameras (Calibration/25/K, D, RT). RT is camera to world with OpenCV axes: so the
authors' benchmark reads it (github.com/RenderMe-360/RenderMe-360-Benchmark, IBRNet), and so the optical axes of a published
calibration meet in the middle of the stage. D is OpenCV's k1 k2 p1 p2 k3.
"""

from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from infer.evaluation.importers.stage import Shot, StagePicture, decode_rgb, drawn, people_in, rigid
from manifests.errors import MissingFile, UserError


class RenderMe360:
    """A copy of RenderMe-360."""

    def __init__(self, root: Path, sequence: str, frame: int, seed: int):
        """Find the people.

        Raises:
            MissingFile: there is no such folder.
            UserError: there are no people in it, or h5py is not installed.
        """
        self.h5py = _h5py()
        self.root, self.sequence, self.frame, self.seed = root, sequence, frame, seed
        layout = "raw/0026/0026_e0_raw.smc with anno/0026/0026_e0_anno.smc"
        if root.is_dir() and not (root / "raw").is_dir():
            raise UserError(f"{root} has no folder raw; the layout is {layout}")
        self.names = people_in(root / "raw", lambda p: bool(self._performances(p)), layout)

    def shots(self, name: str) -> list[Shot]:
        """The pictures of one moment of one performance."""
        raw = drawn(self._performances(self.root / "raw" / name), self.seed, "sequence", name)
        anno = self.root / "anno" / name / raw.name.replace("_raw.smc", "_anno.smc")
        if not anno.is_file():
            raise MissingFile(f"{anno} does not exist; it holds the cameras and masks of {raw.name}")
        with self._opened(raw) as pictures, self._opened(anno) as about:
            try:
                frames = sorted({int(f) for camera in pictures["Camera"].values() for f in camera.get("color", ())})
                if self.frame >= 0:
                    frames = [f for f in frames if f == self.frame]
                if not frames:
                    raise UserError(f"{raw} has no moment" + (f" {self.frame}" if self.frame >= 0 else ""))
                frame = drawn(frames, self.seed, "moment", name)
                there = [c for c in sorted(pictures["Camera"]) if str(frame) in pictures["Camera"][c].get("color", ())]
                calibration = {
                    c: [np.array(about["Calibration"][c][m][()], float) for m in ("K", "D", "RT")] for c in there
                }
            except KeyError as error:
                raise UserError(
                    f"{raw.name} and its annotation are not laid out as RenderMe-360's ({error})"
                ) from error
        return [
            Shot(
                camera,
                partial(self._load, raw, anno, camera, str(frame)),
                K[:3, :3],
                np.linalg.inv(rigid(RT, f"{anno}, camera {camera}")),
                D.ravel(),
            )
            for camera, (K, D, RT) in calibration.items()
        ]

    def _performances(self, person: Path) -> list[Path]:
        there = sorted(person.glob(f"{person.name}_*_raw.smc"))
        return [p for p in there if not self.sequence or p.name == f"{person.name}_{self.sequence}_raw.smc"]

    def _load(self, raw: Path, anno: Path, camera: str, frame: str) -> StagePicture:
        with self._opened(raw) as pictures:
            data = np.asarray(pictures["Camera"][camera]["color"][frame][()]).tobytes()
        rgb = decode_rgb(data, f"{raw}, camera {camera}, frame {frame}")
        with self._opened(anno) as about:
            masks = about["Camera"][camera].get("mask", {}) if camera in about.get("Camera", ()) else {}
            if frame not in masks:
                return StagePicture(rgb, None)
            mask = decode_rgb(np.asarray(masks[frame][()]).tobytes(), f"{anno}, mask {camera}, frame {frame}").max(2)
        if mask.shape != rgb.shape[:2]:
            mask = np.asarray(cv2.resize(mask, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR))
        return StagePicture(rgb, mask)

    def _opened(self, file: Path) -> Any:
        try:
            return self.h5py.File(file, "r")
        except OSError as error:
            raise UserError(f"{file} does not open as HDF5 ({str(error).splitlines()[0]})") from error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError("RenderMe-360's files are HDF5, which h5py reads: pip install h5py") from error
    return h5py
