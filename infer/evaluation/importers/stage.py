"""Calibrated capture stages: pictures with their cameras in any world, read as held-out people of the world of datasets.

Experimental: the readers of NeRSemble, FaceScape and RenderMe-360 follow the authors' documentation and were tested on small
imitations of their files only.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from faces.alignment import SIZE, over_white
from faces.matte import load_bisenet, parsed_alpha, uniform_alpha
from faces.models import largest_face
from geometry.cameras import Cameras, azimuth_elevation
from infer.config import StageConfig
from infer.evaluation.held_out import HeldOut, opaque_photo
from infer.evaluation.importers.head_frame import HeadFrame, head_frame, straightened
from infer.metrics.likeness import FaceEmbedder
from infer.photo import Photo
from manifests.draws import generator
from manifests.errors import MissingFile, UserError
from manifests.pictures import decode_picture
from train.batch import from_bytes
from weights.files import existing, sha256

T = TypeVar("T")


class StagePicture(NamedTuple):
    """One picture as it is stored."""

    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None
    """The person's mask, if the set has masks."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture and its camera; the picture is read by `load`."""

    name: str
    load: Callable[[], StagePicture]
    K: Float64[np.ndarray, "3 3"]
    """Intrinsics in pixels whose centres are integers."""
    w2c: Float64[np.ndarray, "4 4"]
    """World to camera matrix, OpenCV axes, in the world and the unit of the stage."""
    distortion: Float64[np.ndarray, " d"] | None = None
    """Distortion coefficients of OpenCV: k1 k2 p1 p2 k3."""

    def undistorted(self) -> StagePicture:
        """The picture without lens distortion, over white if the set has masks."""
        rgb, alpha = self.load()
        if alpha is not None:
            rgb = over_white(rgb, alpha)
        if self.distortion is not None and self.distortion.any():
            rgb = np.asarray(cv2.undistort(rgb, self.K, self.distortion))
            alpha = None if alpha is None else np.asarray(cv2.undistort(alpha, self.K, self.distortion))
        return StagePicture(rgb, alpha)


@runtime_checkable
class CaptureStage(Protocol):
    """A set of people that were captured by many calibrated cameras at once."""

    @property
    def names(self) -> Sequence[str]: ...

    def shots(self, name: str) -> list[Shot]:
        """All pictures of one moment of a person."""
        ...


def read_rgb(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a picture file; raises MissingFile or UserError."""
    if not file.is_file():
        raise MissingFile(f"{file} does not exist; the copy of the set is not complete")
    return decode_rgb(file.read_bytes(), str(file))


def decode_rgb(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture; raises UserError with its name if the bytes are none."""
    try:
        return decode_picture(data)
    except ValueError as error:
        raise UserError(f"{name} {error} as a picture") from None


def read_json(file: Path) -> Any:
    """Read a JSON file; raises MissingFile or UserError."""
    if not file.is_file():
        raise MissingFile(f"{file} does not exist; it holds the cameras")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error})") from error


def rigid(matrix: Any, name: str) -> Float64[np.ndarray, "4 4"]:
    """A 3 x 4 or 4 x 4 matrix as 4 x 4; raises UserError unless it is a rotation and a translation."""
    found = np.eye(4)
    given = np.asarray(matrix, np.float64)
    if given.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{name} is {' x '.join(map(str, given.shape))}; a camera is 3 x 4 or 4 x 4")
    found[:3] = given[:3]
    if not np.allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-3) or np.linalg.det(found[:3, :3]) < 0:
        raise UserError(f"{name} is no rotation and translation")
    return found


def people_in(root: Path, holds: Callable[[Path], bool], what: str) -> list[str]:
    """Folders of people, named by numbers.

    Raises:
        MissingFile: there is no such folder.
        UserError: it has no people; the message shows the expected layout.
    """
    if not root.is_dir():
        raise MissingFile(f"--data: there is no folder {root}")
    found = sorted((p.name for p in root.iterdir() if p.is_dir() and p.name.isdecimal() and holds(p)), key=int)
    if not found:
        raise UserError(f"{root} has no people; the layout is {what}")
    return found


def drawn(choices: Sequence[T], seed: int, purpose: str, name: str) -> T:
    """One of several, at random by the seed and the person."""
    return choices[int(generator(seed, purpose, int(name)).integers(len(choices)))]


PARSED = 512
"""Side in pixels of the pictures that the face parser sees, as its weights were trained."""


class StagePeople:
    """The people of a capture stage."""

    def __init__(self, stage: CaptureStage, layout: str, config: StageConfig, detector: Any, resolution: int):
        """Wrap a stage; raises MissingFile or UserError if the parser's weights cannot be read."""
        self.stage, self.config, self.resolution = stage, config, resolution
        self.layout, self.detector = layout, detector
        self.names = list(stage.names)
        self.parser = load_bisenet(config.matte.parser, "cpu") if config.matte.parser else None

    @property
    def lineage(self) -> dict[str, Any]:
        """The people, and how their moments and masks are chosen."""
        parser = self.config.matte.parser
        return {
            "layout": self.layout,
            "people": hashlib.sha256(" ".join(self.names).encode()).hexdigest(),
            "sequence": self.config.sequence,
            "frame": self.config.frame,
            "parser": sha256(existing(parser, "stage.matte.parser")) if parser else None,
            "uniform": self.config.matte.uniform,
        }

    def person(self, name: str) -> "StagePerson":
        """Find a person's face in the views and place the head.

        Raises:
            MissingFile, UserError: a picture or a camera cannot be read, or the head cannot be placed.
        """
        shots = self.stage.shots(name)
        if len(shots) < 2:
            raise UserError(f"{name} of {self.layout} has {len(shots)} views that can be used, two are needed")
        K, w2c = (np.stack([getattr(shot, part) for shot in shots]) for part in ("K", "w2c"))
        points, found = np.zeros((len(shots), 5, 2)), np.zeros(len(shots), bool)
        for i, shot in enumerate(shots):
            face = largest_face(self.detector, shot.undistorted().rgb, FaceEmbedder.min_detection)
            if face is not None:
                points[i], found[i] = face.points, True
        try:
            frame = head_frame(points, found, K, w2c)
        except ValueError as error:
            raise UserError(f"{name} of {self.layout}: {error}") from error
        return StagePerson(name, shots, frame, frame.c2w(w2c), self)


@dataclass(frozen=True, eq=False)
class StagePerson:
    """One person at one moment."""

    name: str
    shots: list[Shot]
    frame: HeadFrame
    c2w: np.ndarray
    people: StagePeople

    @cached_property
    def _directions(self) -> tuple[Tensor, Tensor]:
        return azimuth_elevation(torch.from_numpy(self.c2w).float())

    @property
    def azimuth(self) -> Float32[np.ndarray, " v"]:
        return self._directions[0].numpy()

    @property
    def elevation(self) -> Float32[np.ndarray, " v"]:
        return self._directions[1].numpy()

    def read(self, places: Int64[np.ndarray, " k"]) -> HeldOut:
        """Read some views, turned upright and framed; raises MissingFile or UserError if a picture cannot be read."""
        views = [self._view(int(place), self.people.resolution) for place in places]
        alphas = [torch.from_numpy(alpha).float() / 255 for _, alpha, _ in views if alpha is not None]
        cameras = [camera for _, _, camera in views]
        return HeldOut(
            self.name,
            tuple(self.shots[int(place)].name for place in places),
            from_bytes(np.stack([picture for picture, _, _ in views])),
            None,
            torch.stack(alphas) if len(alphas) == len(views) else None,
            Cameras(torch.cat([c.c2w for c in cameras]), torch.cat([c.K for c in cameras])),
            self.azimuth[places],
            self.elevation[places],
            self.frame.points.astype(np.float32),
            None,
        )

    def photo(self, place: int) -> Photo:
        """One view as an aligned photo; raises as `read`."""
        rgb, alpha, _ = self._view(place, SIZE)
        return opaque_photo(f"{self.name}, view {self.shots[place].name}", rgb, alpha)

    def _view(self, place: int, resolution: int) -> tuple[np.ndarray, np.ndarray | None, Cameras]:
        """One view, with the person's mask if it is known or asked for."""
        shot, matte = self.shots[place], self.people.config.matte
        rgb, alpha = shot.undistorted()
        asked = alpha is None and (self.people.parser is not None or matte.uniform)
        side = max(resolution, PARSED) if asked else resolution
        picture, camera = straightened(rgb, shot.K, self.c2w[place], side)
        if alpha is not None:
            return picture, straightened(alpha, shot.K, self.c2w[place], side, beyond=0)[0], camera
        if not asked:
            return picture, None, camera
        try:
            parser = self.people.parser
            alpha = uniform_alpha(picture) if parser is None else parsed_alpha(parser, picture)
        except ValueError as error:
            raise UserError(f"{self.name}, view {shot.name}: {error}") from error
        size = (resolution, resolution)
        small = np.asarray(cv2.resize(over_white(picture, alpha), size, interpolation=cv2.INTER_AREA))
        return small, np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)), camera
