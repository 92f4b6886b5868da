"""Everything that is measured of one person's views against the true ones, as plain numbers that can be stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from geometry.cameras import Cameras
from infer.evaluation.held_out import HeldOut
from infer.evaluation.novel_views import Shown
from infer.metrics.frechet import FID, Inception, load_inception
from infer.metrics.likeness import (
    Consistency,
    FaceEmbedder,
    Faces,
    identity_consistency,
    identity_similarity,
    re_identification,
    similarity,
)
from infer.metrics.picture_metrics import PictureMetrics, picture_metrics
from infer.metrics.pixels import normal_error, to_bytes, to_unit

PictureEmbedder = Callable[[UInt8[np.ndarray, "v h w 3"]], Float32[np.ndarray, "v d"]]
"""Pictures to vectors whose cosines mean likeness, such as CLIP's tower."""

VIEW_METRICS = ("id", "reid_distance", "reid_match", "clip", "normal_error")
"""Of single views, beside those of `picture_metrics`."""
FACE_METRICS = Consistency._fields
"""Of all views of a person, as the recogniser sees them."""


@dataclass(frozen=True, eq=False)
class Kit:
    """What can be measured here, and why the rest cannot, by the name of the metric."""

    pictures: PictureMetrics
    faces: FaceEmbedder | None
    inception: Inception | None
    clip: PictureEmbedder | None
    reid_limit: float
    missing: Mapping[str, str]


def open_kit(
    resolution: int,
    weights: str,
    device: str,
    faces: FaceEmbedder | None,
    clip: PictureEmbedder | None,
    reid_limit: float,
    without_faces: str = "it needs a recogniser; --recogniser names an ArcFace .onnx (or embedded)",
) -> Kit:
    """Load what there are files for; raises nothing for those that are missing."""
    pictures = picture_metrics(resolution, weights, device)
    missing, inception = dict(pictures.missing), None
    try:
        inception = load_inception(weights, device)
    except (FileNotFoundError, ValueError) as error:
        missing |= dict.fromkeys(FID, str(error))
    if faces is None:
        missing |= dict.fromkeys(("id", "reid_distance", "reid_match", *FACE_METRICS), without_faces)
    elif not reid_limit:
        missing["reid_match"] = "--reid-limit tells below which distance the recogniser sees one person (dlib's: 0.6)"
    if clip is None:
        missing["clip"] = "it needs a CLIP; --clip names an open_clip folder"
    return Kit(pictures, faces, inception, clip, reid_limit, missing)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a person's true views, and compared with more than once."""

    held: HeldOut
    rgb: Float32[Tensor, "k 3 h w"]
    """The targets, in [0, 1]."""
    bytes: UInt8[np.ndarray, "k h w 3"]
    points: np.ndarray | None
    """Pixels of the face in each target,"""
    faces: Faces | None
    """and who is in it;"""
    source: Float32[np.ndarray, " d"] | None
    """who is in the input, if a face is found there."""

    @property
    def cameras(self) -> Cameras:
        return self.held.cameras[slice(1, None)]


def look_at_truth(kit: Kit, held: HeldOut) -> Truth:
    """Embed the true views once."""
    pictures = to_bytes(held.rgb)
    if kit.faces is None:
        return Truth(held, to_unit(held.rgb[1:]), pictures[1:], None, None, None)
    embedder = replace(kit.faces, points=held.points)
    at, found = embedder.locate(pictures, held.cameras)
    faces = embedder.at(pictures, at, found)
    source = faces.embedding[0] if found[0] else None
    targets = Faces(faces.embedding[1:], faces.found[1:])
    return Truth(held, to_unit(held.rgb[1:]), pictures[1:], at[1:], targets, source)


def measure(kit: Kit, truth: Truth, shown: Shown) -> dict[str, Any]:
    """Numbers of every view and of the person: lists and floats, NaN where there is nothing to measure."""
    columns: dict[str, np.ndarray] = dict(kit.pictures(to_unit(shown.rgb), truth.rgb))
    person: dict[str, float] = {}
    pictures = to_bytes(shown.rgb)
    if kit.faces is not None and truth.faces is not None and truth.points is not None:
        found = replace(kit.faces, points=shown.points)(pictures, shown.cameras)
        columns["id"] = identity_similarity(found, truth.faces)
        person |= identity_consistency(found, truth.source)._asdict()
        there = kit.faces.at(pictures, truth.points, truth.faces.found)
        again = re_identification(there, truth.faces, kit.reid_limit)
        columns["reid_distance"] = again.distance
        if kit.reid_limit:
            columns["reid_match"] = again.match
    if kit.clip is not None:
        columns["clip"] = similarity(kit.clip, pictures, truth.bytes)
    if shown.normal is not None and truth.held.normal is not None:
        columns["normal_error"] = _normal_errors(shown.normal, truth.held)
    return {"views": {name: np.asarray(c, float).tolist() for name, c in columns.items()}, "person": person}


def _normal_errors(made: Float32[Tensor, "k 3 h w"], held: HeldOut) -> np.ndarray:
    assert held.normal is not None
    true = held.normal[1:]
    # A background of normals is grey, which is no vector at all.
    mask = true.norm(dim=1) > 0.5 if held.alpha is None else held.alpha[1:] > 0.5
    return normal_error(made, torch.nn.functional.normalize(true, dim=1), mask).numpy()
