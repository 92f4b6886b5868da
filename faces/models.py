"""The face of a photo, its pose and its identity, by models of insightface that the user brings as ONNX files.

Nothing is downloaded: insightface's own loader would fetch a package by name, so its classes are given files instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from faces.alignment import Frame
from faces.config import FaceConfig
from faces.landmarks import SIZE, crops
from faces.pose import HeadPose, landmark_pose
from jobs.devices import gpu_index
from manifests.errors import MissingFile, UserError
from weights.files import existing, sha256

CUDA = "CUDAExecutionProvider"


def onnx_session(file: str, device: str) -> Any:
    """Open an ONNX file with as many threads as torch may use in this process.

    Raises:
        UserError: the file does not run on this device, or is not an ONNX model.
    """
    import onnxruntime
    import torch

    if device != "cpu" and CUDA not in onnxruntime.get_available_providers():
        raise UserError(f"--device is {device}, but this onnxruntime runs on the CPU only; install onnxruntime-gpu")
    # By default a session takes every core, whatever number of threads a worker was given.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=onnx_providers(device))
    except Exception as error:  # onnxruntime's own exceptions share no base but this one
        raise UserError(f"{file} is not an ONNX model that runs here: {str(error).splitlines()[0][:160]}") from error
    # Where the CUDA libraries do not load, onnxruntime takes the CPU and only logs it.
    if device != "cpu" and CUDA not in session.get_providers():
        raise UserError(f"--device is {device}, but onnxruntime cannot use it: its CUDA libraries do not load")
    return session


def onnx_providers(device: str) -> list[Any]:
    """The providers of onnxruntime for cpu, cuda or cuda:N, in the order in which it tries them."""
    return [*([] if device == "cpu" else [(CUDA, {"device_id": gpu_index(device)})]), "CPUExecutionProvider"]


@dataclass(frozen=True, eq=False)
class DetectedFace:
    """The largest face of a picture, in pixels whose centres are integers."""

    box: Float32[np.ndarray, "4"]
    """Left, top, right and bottom."""
    points: Float32[np.ndarray, "5 2"]
    """Eyes, nose and corners of the mouth, the subject's right first."""
    count: int
    """Number of faces in the picture."""


def load_detector(path: str, device: str = "cpu") -> Any:
    """Load an SCRFD face detector with key points through insightface; raises MissingFile or UserError in one line."""
    from insightface.model_zoo.scrfd import SCRFD

    file = existing(path, "detector")
    session = onnx_session(str(file), device)
    if len(session.get_outputs()) not in (9, 15):
        raise UserError(f"{file} has {len(session.get_outputs())} outputs; an SCRFD with key points has 9 or 15")
    detector = SCRFD(str(file), session)
    detector.prepare(-1 if device == "cpu" else gpu_index(device), input_size=(640, 640))
    return detector


def largest_face(detector: Any, rgb: UInt8[np.ndarray, "h w 3"], min_detection: float) -> DetectedFace | None:
    """The largest of the faces that an insightface detector finds with at least that score, 0 to 1; None without one."""
    boxes, points = detector.detect(np.ascontiguousarray(rgb[..., ::-1]), det_thresh=min_detection)
    if not len(boxes):
        return None
    largest = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax()
    return DetectedFace(boxes[largest, :4].astype(np.float32), points[largest].astype(np.float32), len(boxes))


def largest_faces(
    detector: Any, rgb: UInt8[np.ndarray, "v h w 3"], views: Bool[np.ndarray, " v"], min_detection: float
) -> tuple[Float32[np.ndarray, "v 5 2"], Bool[np.ndarray, " v"]]:
    """The points of the largest face of some views, NaN where there is none, and which views have one."""
    points, found = np.full((len(rgb), 5, 2), np.nan, np.float32), np.zeros(len(rgb), bool)
    for i in np.flatnonzero(views):
        if (face := largest_face(detector, rgb[i], min_detection)) is not None:
            points[i], found[i] = face.points, True
    return points, found


BATCH = 64
"""Crops per call of the network; 64 crops of 112 px are 9 MB of input."""


@dataclass(frozen=True, eq=False)
class ArcFace:
    """A loaded recogniser."""

    model: Any
    """insightface's ArcFaceONNX."""
    sha256: str
    """Hash of the file that was loaded."""
    dimensions: int
    """Length of an embedding."""

    def embed(self, crops: UInt8[np.ndarray, "v 112 112 3"]) -> Float32[np.ndarray, "v d"]:
        """Unit embeddings of aligned crops (sRGB)."""
        parts = [self.model.get_feat(list(crops[i : i + BATCH, ..., ::-1])) for i in range(0, len(crops), BATCH)]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def load_arcface(path: str, device: str = "cpu") -> ArcFace:
    """Load a recogniser through insightface; raises MissingFile or UserError in one line."""
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    file = existing(path, "arcface")
    session = onnx_session(str(file), device)
    shape, outputs = session.get_inputs()[0].shape, session.get_outputs()
    if len(session.get_inputs()) != 1 or len(shape) != 4 or shape[1:] != [3, SIZE, SIZE]:
        raise UserError(f"{file} reads {shape}; a recogniser reads [batch, 3, {SIZE}, {SIZE}]")
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or not isinstance(outputs[0].shape[1], int):
        raise UserError(f"{file} writes {[o.shape for o in outputs]}; a recogniser writes [batch, dimensions]")
    if isinstance(shape[0], int) and shape[0] != 1:
        raise UserError(f"{file} reads batches of {shape[0]} only; export it with a batch of any size")
    return ArcFace(ArcFaceONNX(str(file), session), sha256(file), outputs[0].shape[1])


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
