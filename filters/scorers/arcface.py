"""Asks a face recogniser whether the views of a head show one person, through insightface's ONNX contract.

Views whose face turns away have no embedding worth comparing: only the frontal cone counts, and the same views of every
identity, or the score would rank cameras. Source: Gen3D-Face, section 3.2 (mean pairwise similarity).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, UInt8

from faces.landmarks import SIZE, face_points, mirrored, project
from faces.recogniser import crops_of, largest_face, load_arcface, load_detector
from filters.config import ArcFaceConfig
from filters.scorer import Columns, ScorerContext, Subject
from geometry.directions import turned
from manifests.scores import IDENTITY, VIEW, Lineage, column
from weights.embedded import RECOGNISER
from weights.files import existing, sha256

FAR = 60.0
"""Degrees of azimuth between views in which a person who changes with azimuth looks like two."""


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


def open_scorer(context: ScorerContext) -> ArcFaceScorer:
    """The scorer with the recogniser of the options, or the embedded one."""
    config = context.options.arcface
    return ArcFaceScorer(config, context.device, context.beyond_embedded("arcface.model", config.model))
