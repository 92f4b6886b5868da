"""Identity metrics of generated views: cosines of face embeddings, and the share of views with a face."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from faces.landmarks import crops, face_points, project
from faces.models import ArcFace, largest_faces
from geometry.cameras import Cameras, azimuth_elevation
from geometry.directions import turned

DLIB_DISTANCE = 0.6
"""Euclidean distance of dlib's embeddings below which faces count as one person. Source: Morphable Diffusion, Gen3D-Face."""


class FaceEmbeddings(NamedTuple):
    """Embeddings of views, and which views have a face; the embeddings of the others are NaN."""

    embedding: Float[np.ndarray, "v d"]
    found: Bool[np.ndarray, " v"]


Embedder = Callable[[UInt8[np.ndarray, "v h w 3"], Cameras], FaceEmbeddings]


@dataclass(frozen=True, eq=False)
class FaceEmbedder:
    """Embeds the faces of views by a recogniser; without a detector, faces are located by the known cameras."""

    arcface: ArcFace
    detector: Any = None
    """An SCRFD detector of `faces.models.load_detector`, or None."""
    points: Float[np.ndarray, "5 3"] | None = None
    """World positions of eyes, nose and corners of the mouth, or None for those of the average head."""
    max_turn: float = 60.0
    """Largest angle to the front (degrees) of a view that has a face, without a detector."""
    max_elevation: float = 30.0
    """Largest absolute elevation (degrees) of a view that has a face, without a detector."""
    min_detection: float = 0.5

    def __call__(self, pictures: UInt8[np.ndarray, "v h w 3"], cameras: Cameras) -> FaceEmbeddings:
        return self.embed_at(pictures, *self.locate(pictures, cameras))

    def locate(
        self, pictures: UInt8[np.ndarray, "v h w 3"], cameras: Cameras
    ) -> tuple[Float[np.ndarray, "v 5 2"], Bool[np.ndarray, " v"]]:
        """Pixels of eyes, nose and mouth of the largest face of each view, and which views have one."""
        if self.detector is not None:
            return largest_faces(self.detector, pictures, np.ones(len(pictures), bool), self.min_detection)
        points = face_points() if self.points is None else self.points
        azimuth, elevation = (angle.cpu().numpy() for angle in azimuth_elevation(cameras.c2w))
        found = (turned(azimuth) <= self.max_turn) & (np.abs(elevation) <= self.max_elevation)
        return project(points, cameras.to("cpu"), pictures.shape[1]), found

    def embed_at(
        self,
        pictures: UInt8[np.ndarray, "v h w 3"],
        points: Float[np.ndarray, "v 5 2"],
        found: Bool[np.ndarray, " v"],
    ) -> FaceEmbeddings:
        """Embed the faces whose points are at given pixels, such as those of the true views."""
        embedding = np.full((len(pictures), self.arcface.dimensions), np.nan, np.float32)
        embedding[found] = self.arcface.embed(crops(pictures[found], points[found]))
        return FaceEmbeddings(embedding, found)


def cosines(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*m d"]) -> Float[np.ndarray, "..."]:
    """Cosines of embeddings of any length, of faces or of CLIP; n and m broadcast."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(lengths, 1e-12)


def similarity(
    embed: Callable[[UInt8[np.ndarray, "v h w 3"]], Float[np.ndarray, "v d"]],
    generated: UInt8[np.ndarray, "v h w 3"],
    reference: UInt8[np.ndarray, "k h w 3"],
) -> Float[np.ndarray, " v"]:
    """The cosine of each generated view with its true one, or with the one input (k is v or 1), by any embedding.

    With CLIP's picture tower it is the CLIP similarity, of which Gen3D-Face names neither the model nor the pair.
    """
    return cosines(embed(generated), embed(reference))


def identity_similarity(generated: FaceEmbeddings, target: FaceEmbeddings) -> Float[np.ndarray, " v"]:
    """ID, or CSIM: the cosine of each generated view with the true one; NaN where either holds no face."""
    return np.where(generated.found & target.found, cosines(generated.embedding, target.embedding), np.nan)


def input_to_output(source: Float[np.ndarray, " d"], generated: FaceEmbeddings) -> Float[np.ndarray, " v"]:
    """The cosine of each generated view with the input; NaN where it holds no face."""
    return np.where(generated.found, cosines(source[None], generated.embedding), np.nan)


def output_to_output(generated: FaceEmbeddings) -> Float[np.ndarray, " p"]:
    """The cosines of all pairs of views that hold a face."""
    vectors = generated.embedding[generated.found]
    i, j = np.triu_indices(len(vectors), 1)
    return cosines(vectors[i], vectors[j])


class Consistency(NamedTuple):
    """Identity metrics of all views of a person; NaN where there is nothing to compare.

    Source: Gen3D-Face, section 4, which does not state how views without a face count. They are left out of o2o and i2o and
    count 0 in o2o_counted and i2o_counted, which a model cannot raise by hiding the face.
    """

    o2o: float
    i2o: float
    detection_rate: float
    o2o_counted: float
    i2o_counted: float


def identity_consistency(generated: FaceEmbeddings, source: Float[np.ndarray, " d"] | None) -> Consistency:
    """Output-to-output and input-to-output identity of the views of one identity, and the share that holds a face.

    High o2o alone says little: a wrong person may be consistent.
    """
    views, pairs = len(generated.found), output_to_output(generated)
    of_input = input_to_output(source, generated) if source is not None else np.full(views, np.nan)
    of_input = of_input[generated.found & ~np.isnan(of_input)]
    all_pairs = views * (views - 1) // 2
    return Consistency(
        o2o=_mean(pairs),
        i2o=_mean(of_input),
        detection_rate=float(generated.found.mean()) if views else np.nan,
        o2o_counted=float(pairs.sum()) / all_pairs if all_pairs else np.nan,
        i2o_counted=float(of_input.sum()) / views if views and source is not None else np.nan,
    )


class ReIdentification(NamedTuple):
    """Distances of embeddings to those of the true views, and whether they count as the same person, per view."""

    distance: Float[np.ndarray, " v"]
    match: Float[np.ndarray, " v"]
    """1 or 0, or NaN where the true view has no face."""


def re_identification(generated: FaceEmbeddings, target: FaceEmbeddings, max_distance: float) -> ReIdentification:
    """Euclidean distances to the true views, and which are below `max_distance` (DLIB_DISTANCE for dlib's embeddings).

    As in Morphable Diffusion, faces are located in the true views, and generated views are embedded at the same points
    (`FaceEmbedder.embed_at`). A view without a face is no match and has no distance.
    """
    distance = np.linalg.norm(generated.embedding - target.embedding, axis=-1)
    distance = np.where(generated.found & target.found, distance, np.nan)
    return ReIdentification(distance, np.where(target.found, (distance < max_distance).astype(float), np.nan))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
