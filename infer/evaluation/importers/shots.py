"""What a calibrated stage leaves of one moment: pictures with their cameras, in whatever world it was calibrated in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from faces.alignment import over_white
from manifests.draws import generator
from manifests.errors import MissingFile, UserError

T = TypeVar("T")


class Pixels(NamedTuple):
    """One picture as it is stored."""

    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None
    """What belongs to the person, if the set tells."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture and its camera; the picture is read when it is looked at."""

    name: str
    load: Callable[[], Pixels]
    K: Float64[np.ndarray, "3 3"]
    """In pixels whose centres are integers."""
    w2c: Float64[np.ndarray, "4 4"]
    """World to camera, OpenCV axes."""
    distortion: Float64[np.ndarray, " d"] | None = None
    """OpenCV's k1 k2 p1 p2 k3."""

    def seen(self) -> Pixels:
        """The picture without distortion; over white if the set tells what the person is."""
        rgb, alpha = self.load()
        if alpha is not None:
            rgb = over_white(rgb, alpha)
        if self.distortion is not None and self.distortion.any():
            rgb = np.asarray(cv2.undistort(rgb, self.K, self.distortion))
            alpha = None if alpha is None else np.asarray(cv2.undistort(alpha, self.K, self.distortion))
        return Pixels(rgb, alpha)


@runtime_checkable
class Stage(Protocol):
    """A set of people who were seen by many cameras at once."""

    @property
    def names(self) -> Sequence[str]: ...

    def shots(self, name: str) -> list[Shot]:
        """All pictures of one moment of a person."""
        ...


def read_rgb(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file as it is stored; raises FileNotFoundError or ValueError."""
    if not file.is_file():
        raise MissingFile(f"{file} is not there; the copy of the set is not complete")
    return decode_rgb(file.read_bytes(), str(file))


def decode_rgb(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of its bytes; raises ValueError with its name if they are none."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UserError(f"{name} does not decode as a picture")
    return np.asarray(picture)


def read_json(file: Path) -> Any:
    """What a JSON file holds; raises FileNotFoundError or ValueError."""
    if not file.is_file():
        raise MissingFile(f"{file} is not there; the cameras are in it")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error})") from error


def rigid(matrix: Any, name: str) -> Float64[np.ndarray, "4 4"]:
    """A 3 x 4 or 4 x 4 matrix as 4 x 4; raises ValueError unless it turns and shifts and does nothing else."""
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
        FileNotFoundError: there is no such folder.
        ValueError: it has no people; says how the layout looks.
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
