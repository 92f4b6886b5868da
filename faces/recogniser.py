"""Face recognisers and detectors of insightface, as ONNX files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from faces.landmarks import SIZE, crops
from jobs.devices import gpu_index
from manifests.errors import UserError
from weights.files import existing, sha256

BATCH = 64
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True, eq=False)
class ArcFace:
    """A loaded recogniser; `model` is insightface's ArcFaceONNX."""

    model: Any
    sha256: str
    dimensions: int

    def embed(self, faces: UInt8[np.ndarray, "v 112 112 3"]) -> Float32[np.ndarray, "v d"]:
        """Unit embeddings of aligned crops (RGB)."""
        parts = [self.model.get_feat(list(faces[i : i + BATCH, ..., ::-1])) for i in range(0, len(faces), BATCH)]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def load_arcface(path: str, device: str = "cpu") -> ArcFace:
    """Load a recogniser through insightface; raises FileNotFoundError or ValueError with one line on what is wrong."""
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


@dataclass(frozen=True, eq=False)
class Face:
    """The largest face of a picture, in pixels whose centres are integers."""

    box: Float32[np.ndarray, "4"]
    points: Float32[np.ndarray, "5 2"]
    """Eyes, nose and corners of the mouth, the subject's right first."""
    count: int
    """Of all faces that were found."""


def largest_face(detector: Any, rgb: UInt8[np.ndarray, "h w 3"], min_detection: float) -> Face | None:
    """What an insightface detector sees, if it is as sure as that of any face."""
    boxes, points = detector.detect(np.ascontiguousarray(rgb[..., ::-1]), det_thresh=min_detection)
    if not len(boxes):
        return None
    largest = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax()
    return Face(boxes[largest, :4].astype(np.float32), points[largest].astype(np.float32), len(boxes))


def load_detector(path: str, device: str = "cpu") -> Any:
    """Load an SCRFD face detector with key points through insightface; raises FileNotFoundError or ValueError."""
    from insightface.model_zoo.scrfd import SCRFD

    file = existing(path, "detector")
    session = onnx_session(str(file), device)
    if len(session.get_outputs()) not in (9, 15):
        raise UserError(f"{file} has {len(session.get_outputs())} outputs; an SCRFD with key points has 9 or 15")
    detector = SCRFD(str(file), session)
    detector.prepare(-1 if device == "cpu" else gpu_index(device), input_size=(640, 640))
    return detector


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
    """What onnxruntime calls a device."""
    return [*([] if device == "cpu" else [(CUDA, {"device_id": gpu_index(device)})]), "CPUExecutionProvider"]


def crops_of(
    pictures: UInt8[np.ndarray, "v h w 3"], points: Float[np.ndarray, "v 5 2"], which: Bool[np.ndarray, " v"]
) -> UInt8[np.ndarray, "f 112 112 3"]:
    """The crops of some of the views."""
    return crops(pictures[which], points[which]) if which.any() else np.empty((0, SIZE, SIZE, 3), np.uint8)
