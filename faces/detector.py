"""Face detectors of insightface (SCRFD), as ONNX files."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from faces.onnx import onnx_session
from jobs.devices import gpu_index
from manifests.errors import UserError
from weights.files import existing


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
