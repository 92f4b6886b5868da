"""NeRSemble (experimental): 16 cameras in front of a face, as the authors' code reads it.

Layout of version 1 (github.com/tobias-kirschstein/nersemble):
    018/camera_params.json, 018/sequences/SEQUENCE/frame_00000/images-2x-73fps/cam_220700191.png, alpha_map-73fps/ beside it
Layout of version 2 (github.com/tobias-kirschstein/nersemble-data):
    018/calibration/camera_params.json, 018/sequences/SEQUENCE/images/cam_220700191.mp4
camera_params.json holds `world_2_cam` (4 x 4, OpenCV axes, by serial number) and `intrinsics` (3 x 3, shared, of pictures of
2200 x 3208 pixels); pictures are not distorted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from infer.evaluation.importers.stage import Shot, StagePicture, drawn, people_in, read_json, read_rgb, rigid
from manifests.errors import UserError

WIDTH = 2200
"""Width in pixels of the pictures that the intrinsics refer to."""
PICTURES = (("images-2x-73fps", "alpha_map-73fps"), ("images-2x", "alpha_map"))
EMPTY = "BACKGROUND"
"""The sequence that shows the empty stage."""


class NeRSemble:
    """A copy of NeRSemble, of either version."""

    def __init__(self, root: Path, sequence: str, frame: int, seed: int):
        """Find the people; raises MissingFile or UserError if there are none."""
        self.root, self.sequence, self.frame, self.seed = root, sequence, frame, seed
        layout = "018/sequences/EMO-1-shout+laugh/... with 018/camera_params.json or 018/calibration/camera_params.json"
        self.names = people_in(root, lambda p: bool(self._sequences(p)), layout)

    def shots(self, name: str) -> list[Shot]:
        """The pictures of one moment of one sequence."""
        person = self.root / name
        sequence = drawn(self._sequences(person), self.seed, "sequence", name)
        cameras = person / "camera_params.json"
        cameras = cameras if cameras.is_file() else person / "calibration" / "camera_params.json"
        found = read_json(cameras)
        try:
            K = np.array(found["intrinsics"], np.float64).reshape(3, 3)
            w2c = {serial: rigid(matrix, f"{cameras}, {serial}") for serial, matrix in found["world_2_cam"].items()}
        except (KeyError, TypeError) as error:
            raise UserError(f"{cameras} has no {error}; it holds world_2_cam and intrinsics") from error
        videos = sorted((sequence / "images").glob("cam_*.mp4"))
        loads = self._videos(name, videos) if videos else self._frames(name, sequence)
        shots = []
        for serial, (load, width) in loads.items():
            if serial not in w2c:
                raise UserError(f"{cameras} lacks camera {serial} of {sequence}")
            scaled = K.copy()
            scaled[:2] *= width / WIDTH
            shots.append(Shot(serial, load, scaled, w2c[serial]))
        return shots

    def _sequences(self, person: Path) -> list[Path]:
        folder = person / "sequences"
        there = sorted(p for p in folder.iterdir() if p.is_dir() and p.name != EMPTY) if folder.is_dir() else []
        return [p for p in there if not self.sequence or p.name == self.sequence]

    def _frames(self, name: str, sequence: Path) -> dict:
        """Version 1: a folder per moment."""
        frames = sorted(p for p in sequence.glob("frame_*") if any((p / own).is_dir() for own, _ in PICTURES))
        if self.frame >= 0:
            frames = [p for p in frames if int(p.name.removeprefix("frame_")) == self.frame]
        if not frames:
            raise UserError(
                f"{sequence} has no moment{_which(self.frame)}: no frame_*/images-2x-73fps, no images/cam_*.mp4"
            )
        moment = drawn(frames, self.seed, "moment", name)
        pictures, masks = next((own, alpha) for own, alpha in PICTURES if (moment / own).is_dir())
        files = sorted((moment / pictures).glob("cam_*.png"))
        return {
            file.stem.removeprefix("cam_"): (partial(_load, file, moment / masks / file.name), _width(file))
            for file in files
        }

    def _videos(self, name: str, videos: list[Path]) -> dict:
        """Version 2: a film per camera."""
        sizes = {}
        for video in videos:
            with _opened(video) as film:
                sizes[video] = int(film.get(cv2.CAP_PROP_FRAME_COUNT)), int(film.get(cv2.CAP_PROP_FRAME_WIDTH))
        last = min(count for count, _ in sizes.values())
        if not max(self.frame, 0) < last:
            raise UserError(f"{videos[0].parent} has {last} moments{_which(self.frame)}")
        frame = self.frame if self.frame >= 0 else drawn(range(last), self.seed, "moment", name)
        return {
            video.stem.removeprefix("cam_"): (partial(_load_frame, video, frame), width)
            for video, (_, width) in sizes.items()
        }


def _load(file: Path, mask: Path) -> StagePicture:
    rgb = read_rgb(file)
    if not mask.is_file():
        return StagePicture(rgb, None)
    alpha = read_rgb(mask)[..., 0]
    if alpha.shape != rgb.shape[:2]:
        alpha = np.asarray(cv2.resize(alpha, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR))
    return StagePicture(rgb, alpha)


def _load_frame(video: Path, frame: int) -> StagePicture:
    with _opened(video) as film:
        film.set(cv2.CAP_PROP_POS_FRAMES, frame)
        good, picture = film.read()
        following = int(film.get(cv2.CAP_PROP_POS_FRAMES))
    if not good or following != frame + 1:
        raise UserError(f"{video} does not give its frame {frame}")
    return StagePicture(np.ascontiguousarray(picture[..., ::-1]), None)


@contextmanager
def _opened(video: Path) -> Iterator[cv2.VideoCapture]:
    film = cv2.VideoCapture(str(video))
    try:
        if not film.isOpened():
            raise UserError(f"{video} does not open as a film")
        yield film
    finally:
        film.release()


def _width(file: Path) -> int:
    try:
        with Image.open(file) as image:
            return image.width
    except OSError as error:
        raise UserError(f"{file} does not decode as a picture") from error


def _which(frame: int) -> str:
    return f", and --stage.frame is {frame}" if frame >= 0 else ""
