"""Asks a face recogniser whether the views of a head show one person, through insightface's ONNX contract.

Views whose face turns away have no embedding worth comparing: only the frontal cone counts, and the same views of every
identity, or the score would rank cameras. Source: Gen3D-Face, section 3.2 (mean pairwise similarity).
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, UInt8

from filters.landmarks import SIZE, crops, face_points, mirrored, project
from filters.scorer import Columns, Subject
from filters.weights import RECOGNISER, absolute, existing, sha256
from geometry.cameras import turned
from jobs.devices import gpu_index
from manifests.errors import UserError
from manifests.scores import IDENTITY, VIEW, Lineage, column

BATCH = 64
CUDA = "CUDAExecutionProvider"
FAR = 60.0
"""Degrees of azimuth between views in which a person who changes with azimuth looks like two."""


@dataclass(frozen=True)
class ArcFaceConfig:
    """Which recogniser is asked, about which views."""

    model: str = ""
    """A local .onnx of 112-pixel crops to embeddings, such as glintr100.onnx. By default the embedded recogniser,
    which judges procedural heads only."""
    detector: str = ""
    """A local SCRFD .onnx that finds faces; without it the known cameras say where a face must be."""
    max_turn: float = 60.0
    """The frontal cone: views turned less than this (degrees)"""
    max_elevation: float = 30.0
    """and no more than this above or below."""
    min_views: int = 3
    """An identity with fewer embeddings in the cone gets NaN."""
    back_turn: float = 120.0
    """Views turned more than this are tested for the mirror image of the face."""
    min_detection: float = 0.5
    """What the detector must be sure of."""
    table: str = "arcface"
    """The table to write; give another name to keep the scores of several recognisers."""

    def __post_init__(self) -> None:
        if not 0 < self.max_turn < self.back_turn <= 180:
            raise UserError(
                f"--arcface.max-turn is {self.max_turn:g} and --arcface.back-turn {self.back_turn:g}; "
                "the cone must end before the back begins, within 180 degrees"
            )
        if self.min_views < 2:
            raise UserError(f"--arcface.min-views is {self.min_views}; a pair needs 2 views or more")

    def absolute(self) -> "ArcFaceConfig":
        """The same, with paths that hold wherever a worker runs."""
        return replace(self, model=absolute(self.model), detector=absolute(self.detector))


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


@dataclass(frozen=True, eq=False)
class Faces:
    """The crops of one identity: views of the cone with a face, and views of the back aligned to its mirror image."""

    in_cone: Bool[np.ndarray, " v"]
    found: Bool[np.ndarray, " v"]
    azimuth: Float[np.ndarray, " v"]
    """From -180 to 180."""
    front: UInt8[np.ndarray, "f 112 112 3"]
    back: UInt8[np.ndarray, "k 112 112 3"]


class ArcFaceScorer:
    """An embedding per frontal view; per identity how well they agree, how many there are, and the mirror test."""

    members = ("rgb",)

    def __init__(self, config: ArcFaceConfig, device: str, allowed: bool = False):
        """Load the models; `allowed`: the embedded one judges heads that it does not know, which the lineage records."""
        self.config, self.table = config, config.table
        self.arcface = load_arcface(config.model or str(RECOGNISER), device)
        self.detector = load_detector(config.detector, device) if config.detector else None
        self.columns = (
            column("embedding", VIEW, "unit embedding", pa.list_(pa.float16(), self.arcface.dimensions)),
            column("agreement", VIEW, "mean cosine of the view's embedding with the others of the cone"),
            column("mean_cosine", IDENTITY, "mean cosine over all pairs of views of the frontal cone"),
            column("min_cosine", IDENTITY, "lowest cosine of a pair"),
            column("far_cosine", IDENTITY, "mean cosine of views of the cone more than FAR degrees of azimuth apart"),
            column("detections", IDENTITY, "views of the cone with a face"),
            column("detection_rate", IDENTITY, "the same as a share of the cone"),
            column(
                "mirror_cosine",
                IDENTITY,
                "best cosine of a back view, aligned as if it held the face, with a frontal one",
            ),
        )
        settings = {k: v for k, v in asdict(config).items() if k not in ("model", "table", "detector")}
        settings["detector_sha256"] = sha256(existing(config.detector, "detector")) if config.detector else None
        settings |= {"allow_embedded": True} if allowed else {}
        self.lineage = Lineage("arcface", 2, self.arcface.sha256, settings)

    def wants(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        return self._cone(azimuth, elevation) | (turned(azimuth) >= self.config.back_turn)

    def _cone(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        return (turned(azimuth) <= self.config.max_turn) & (np.abs(elevation) <= self.config.max_elevation)

    def prepare(self, subject: Subject) -> Faces:
        in_cone = self._cone(subject.azimuth, subject.elevation)
        if not len(in_cone):
            none = np.empty((0, SIZE, SIZE, 3), np.uint8)
            return Faces(in_cone, in_cone, subject.azimuth, none, none)
        pictures, points = subject.member("rgb"), face_points(subject.row)
        expected = project(points, subject.cameras, pictures.shape[1])
        behind = project(mirrored(points), subject.cameras, pictures.shape[1])
        at, found = self._detect(pictures, in_cone, expected)
        azimuth = (subject.azimuth + 180) % 360 - 180
        return Faces(in_cone, found, azimuth, crops_of(pictures, at, found), crops_of(pictures, behind, ~in_cone))

    def _detect(
        self,
        pictures: UInt8[np.ndarray, "v h w 3"],
        in_cone: Bool[np.ndarray, " v"],
        expected: Float[np.ndarray, "v 5 2"],
    ) -> tuple[Float[np.ndarray, "v 5 2"], Bool[np.ndarray, " v"]]:
        """The points of the largest face in each view of the cone; without a detector, where the camera says they are."""
        if self.detector is None:
            return expected, in_cone
        at, found = expected.copy(), np.zeros(len(in_cone), bool)
        for i in np.flatnonzero(in_cone):
            if (face := largest_face(self.detector, pictures[i], self.config.min_detection)) is not None:
                at[i], found[i] = face.points, True
        return at, found

    def score(self, faces: Faces) -> Columns:
        both = self.arcface.embed(np.concatenate([faces.front, faces.back]))
        front, back = both[: len(faces.front)], both[len(faces.front) :]
        embedding = np.full((len(faces.found), self.arcface.dimensions), np.nan, np.float32)
        embedding[faces.found] = front
        agreement = np.full(len(faces.found), np.nan, np.float32)
        count = int(faces.found.sum())
        numbers: dict[str, Any] = dict.fromkeys(("mean_cosine", "min_cosine", "far_cosine", "mirror_cosine"), np.nan)
        if count >= self.config.min_views:
            cosines = front @ front.T
            agreement[faces.found] = (cosines.sum(1) - 1) / (count - 1)
            i, j = np.triu_indices(count, 1)
            pairs, azimuth = cosines[i, j], faces.azimuth[faces.found]
            far = pairs[np.abs(azimuth[i] - azimuth[j]) > FAR]
            numbers |= {"mean_cosine": pairs.mean(), "min_cosine": pairs.min()}
            numbers |= {"far_cosine": far.mean()} if len(far) else {}
        if count and len(back):
            numbers["mirror_cosine"] = (back @ front.T).max()
        rate = count / faces.in_cone.sum() if faces.in_cone.any() else np.nan
        return {"embedding": embedding, "agreement": agreement, **numbers, "detections": count, "detection_rate": rate}


def crops_of(
    pictures: UInt8[np.ndarray, "v h w 3"], points: Float[np.ndarray, "v 5 2"], which: Bool[np.ndarray, " v"]
) -> UInt8[np.ndarray, "f 112 112 3"]:
    """The crops of some of the views."""
    return crops(pictures[which], points[which]) if which.any() else np.empty((0, SIZE, SIZE, 3), np.uint8)
