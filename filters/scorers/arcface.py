"""Agreement of the views of a head by a face recogniser, through insightface.

Views whose face turns away have no embedding worth comparing: only the frontal cone counts, and the same views of every
identity, or the score would rank cameras. Source: Gen3D-Face, section 3.2 (mean pairwise similarity).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, UInt8

from faces.landmarks import SIZE, crops, face_points, mirrored, project
from faces.models import largest_faces, load_arcface, load_detector
from filters.config import ArcFaceConfig
from filters.scorer import Columns, ScorerContext, Subject
from geometry.directions import turned, wrapped
from manifests.scores import IDENTITY, VIEW, Lineage, column
from weights.embedded import RECOGNISER
from weights.files import existing, sha256

FAR = 60.0
"""Degrees of azimuth between two views for `far_cosine`; a person who changes with azimuth looks like two at this distance."""


@dataclass(frozen=True, eq=False)
class FaceCrops:
    """The crops of one identity."""

    in_cone: Bool[np.ndarray, " v"]
    """Whether a view lies in the frontal cone."""
    found: Bool[np.ndarray, " v"]
    """Whether a view of the cone shows a face."""
    azimuth: Float[np.ndarray, " v"]
    """Degrees from -180 to 180."""
    front: UInt8[np.ndarray, "f 112 112 3"]
    """Crops of the views in which a face was found."""
    back: UInt8[np.ndarray, "k 112 112 3"]
    """Crops of the views beyond the cone, aligned as if a mirror image of the face were on the back."""


class ArcFaceScorer:
    """An embedding per frontal view; per identity how well they agree, how many there are, and the mirror test."""

    members = ("rgb",)

    def __init__(self, config: ArcFaceConfig, device: str, beyond_embedded: bool = False):
        """Load the models; `beyond_embedded` records that the embedded one was not trained on heads of this source."""
        self.config, self.table = config, config.table
        self.arcface = load_arcface(config.model or str(RECOGNISER), device)
        self.detector = load_detector(config.detector, device) if config.detector else None
        self.columns = (
            column("embedding", VIEW, "unit embedding", pa.list_(pa.float16(), self.arcface.dimensions)),
            column("agreement", VIEW, "mean cosine of the view's embedding with the others of the cone"),
            column("mean_cosine", IDENTITY, "mean cosine over all pairs of views of the frontal cone"),
            column("min_cosine", IDENTITY, "lowest cosine of a pair"),
            column(
                "far_cosine", IDENTITY, f"mean cosine of views of the cone more than {FAR:g} degrees of azimuth apart"
            ),
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
        settings |= {"allow_embedded": True} if beyond_embedded else {}
        self.lineage = Lineage("arcface", 2, self.arcface.sha256, settings)

    def wants(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        return self._cone(azimuth, elevation) | (turned(azimuth) >= self.config.back_turn)

    def _cone(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        return (turned(azimuth) <= self.config.max_turn) & (np.abs(elevation) <= self.config.max_elevation)

    def prepare(self, subject: Subject) -> FaceCrops:
        in_cone = self._cone(subject.azimuth, subject.elevation)
        if not len(in_cone):
            none = np.empty((0, SIZE, SIZE, 3), np.uint8)
            return FaceCrops(in_cone, in_cone, subject.azimuth, none, none)
        pictures, landmarks = subject.member("rgb"), face_points(subject.row["facts"])
        if self.detector is None:
            points, found = project(landmarks, subject.cameras, pictures.shape[1]), in_cone
        else:
            points, found = largest_faces(self.detector, pictures, in_cone, self.config.min_detection)
        front = crops(pictures[found], points[found])
        behind = project(mirrored(landmarks), subject.cameras, pictures.shape[1])
        back = crops(pictures[~in_cone], behind[~in_cone])
        return FaceCrops(in_cone, found, wrapped(subject.azimuth), front, back)

    def score(self, faces: FaceCrops) -> Columns:
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
