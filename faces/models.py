"""The face of a photo, its pose and its identity, by models of insightface that the user brings as files.

Nothing is downloaded: insightface's own loader would fetch a package by name, so its classes are given files instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from faces.alignment import Frame
from faces.config import FaceConfig
from faces.detector import DetectedFace, largest_face, load_detector
from faces.landmarks import crops
from faces.onnx import onnx_session
from faces.pose import HeadPose, landmark_pose
from faces.recogniser import ArcFace, load_arcface
from manifests.errors import MissingFile, UserError
from weights.files import existing

IDENTITY = 512
"""Length of an identity embedding, as Arc2Face's text encoder reads it."""
SIZES = [(128, 128), (640, 640)]
"""Sizes at which the detector reads a photo, as in insightface: at 128 px it finds faces that fill the picture."""


@dataclass(frozen=True, eq=False)
class FaceModels:
    """Loaded face models; those that were not given are None."""

    detector: Any
    landmarks: Any
    arcface: ArcFace | None
    without_arcface: str
    """The reason why there is no recogniser, or an empty text."""
    min_detection: float

    def largest(self, rgb: UInt8[np.ndarray, "h w 3"]) -> DetectedFace | None:
        """The largest face of a photo (sRGB); None without one."""
        return largest_face(self.detector, rgb, self.min_detection)

    def pose(self, rgb: UInt8[np.ndarray, "h w 3"], face: DetectedFace, frame: Frame) -> HeadPose:
        """The pose of the head relative to a frame, from 68 landmarks (see `faces.pose`)."""
        found = self.landmarks.get(np.ascontiguousarray(rgb[..., ::-1]), _Box(face.box))
        return landmark_pose(found.astype(np.float64), self.landmarks.mean_lmk.astype(np.float64), frame)

    def identity(self, rgb: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "5 2"]) -> Float32[np.ndarray, "512"]:
        """The unit embedding of the face with these five points."""
        assert self.arcface is not None
        return self.arcface.embed(crops(rgb[None], np.asarray(points, np.float32)[None]))[0]


class _Box(dict):
    """The face that insightface's landmark model reads: a dictionary with a box, to which it adds its result."""

    def __init__(self, box: Float32[np.ndarray, "4"]):
        super().__init__()
        self.bbox = box


def load_face_models(config: FaceConfig, device: str = "cpu") -> FaceModels:
    """Load the models that the config names.

    Raises:
        MissingFile: there is no such file or folder; the message names the file to place there.
        UserError: a file is no such model, or several files match.
    """
    arcface, without = _recogniser(config, device)
    if not config.models:
        return FaceModels(None, None, arcface, without, config.min_detection)
    folder = Path(config.models)
    if not folder.is_dir():
        raise MissingFile(f"face.models: there is no folder {folder}; give the folder of your antelopev2 models")
    detector = load_detector(_one_of(folder, ("scrfd_*.onnx", "det_*.onnx"), "scrfd_10g_bnkps.onnx"), device)
    detector.prepare(0, input_size=SIZES)
    landmarks = _load_landmarks(_one_of(folder, ("1k3d68.onnx",), "1k3d68.onnx"), device)
    return FaceModels(detector, landmarks, arcface, without, config.min_detection)


def _one_of(folder: Path, patterns: tuple[str, ...], wanted: str) -> str:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found:
        raise MissingFile(f"face.models: {folder} has no {wanted}; place it there (nothing is downloaded)")
    if len(found) > 1:
        raise UserError(f"face.models: {folder} has {', '.join(p.name for p in found)}; leave one of them there")
    return str(found[0])


def _load_landmarks(path: str, device: str) -> Any:
    from insightface.model_zoo.landmark import Landmark

    session = onnx_session(path, device)
    shape, outputs = session.get_inputs()[0].shape, session.get_outputs()
    if len(outputs) != 1 or len(shape) != 4 or not isinstance(shape[3], int) or outputs[0].shape[1:] != [3309]:
        raise UserError(
            f"{path} writes {[o.shape for o in outputs]}; the 3D landmark model 1k3d68 writes [batch, 3309]"
        )
    return Landmark(path, session)


def _recogniser(config: FaceConfig, device: str) -> tuple[ArcFace | None, str]:
    path = config.arcface
    if not path and config.models:
        folder = Path(config.models)
        own = folder / "arcface.onnx"
        if not own.is_file():
            others = [name for name in ("glintr100.onnx", "w600k_r50.onnx") if (folder / name).is_file()]
            but = f" ({others[0]} is another recogniser)" if others else ""
            return None, f"{folder} has no arcface.onnx, the recogniser of Arc2Face{but}"
        path = str(own)
    if not path:
        return None, "no recogniser was given; --face.arcface names Arc2Face's arcface.onnx"
    arcface = load_arcface(str(existing(path, "face.arcface")), device)
    if arcface.dimensions != IDENTITY:
        raise UserError(f"{path} writes {arcface.dimensions} numbers; an identity has {IDENTITY}")
    return arcface, ""
