"""Finds the face of a photo, its pose and its identity, with models of insightface that the person brings as files.

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
"""Numbers of an identity, as Arc2Face's text encoder reads them."""
SIZES = [(128, 128), (640, 640)]
"""What the detector looks at, as insightface does: at 128 px it sees faces that fill the picture."""


@dataclass(frozen=True, eq=False)
class FaceModels:
    """Loaded face models; what was not given is None."""

    detector: Any
    landmarks: Any
    arcface: ArcFace | None
    without_arcface: str
    """Why there is no recogniser, if so."""
    min_detection: float

    def largest(self, rgb: UInt8[np.ndarray, "h w 3"]) -> DetectedFace | None:
        """The largest face, if there is any."""
        return largest_face(self.detector, rgb, self.min_detection)

    def pose(self, rgb: UInt8[np.ndarray, "h w 3"], face: DetectedFace, frame: Frame) -> HeadPose:
        """How the head lies against a frame, from 68 landmarks (see `faces.pose`)."""
        found = self.landmarks.get(np.ascontiguousarray(rgb[..., ::-1]), _Box(face.box))
        return landmark_pose(found.astype(np.float64), self.landmarks.mean_lmk.astype(np.float64), frame)

    def identity(self, rgb: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "5 2"]) -> Float32[np.ndarray, "512"]:
        """The unit embedding of the face that has its points there."""
        assert self.arcface is not None
        return self.arcface.embed(crops(rgb[None], np.asarray(points, np.float32)[None]))[0]


class _Box(dict):
    """The box that insightface's landmark model reads, and the place for what it writes."""

    def __init__(self, box: Float32[np.ndarray, "4"]):
        super().__init__()
        self.bbox = box


def load_face_models(config: FaceConfig, device: str = "cpu") -> FaceModels:
    """Load what the config names.

    Raises:
        FileNotFoundError: a file or the folder is not there; it says which file to place where.
        ValueError: a file is no such model, or several could be meant.
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
