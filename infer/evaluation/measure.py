"""Measures one person's views against the true ones; the results are plain numbers that can be stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from geometry.cameras import Cameras
from geometry.directions import angular_distance
from infer.evaluation.held_out import HeldOut
from infer.evaluation.methods import EvaluatedViews
from infer.metrics.consistency import chunk_borders, epipolar_distances, epipolar_figures
from infer.metrics.frechet import FID, Inception, load_inception
from infer.metrics.hull import colour_spread
from infer.metrics.likeness import (
    Consistency,
    FaceEmbedder,
    FaceEmbeddings,
    identity_consistency,
    identity_similarity,
    re_identification,
    similarity,
)
from infer.metrics.perceptual import PictureMetrics, picture_metrics
from infer.metrics.pixels import normal_error, to_unit
from train.batch import to_bytes

PictureEmbedder = Callable[[UInt8[np.ndarray, "v h w 3"]], Float32[np.ndarray, "v d"]]
"""An embedding of 8-bit sRGB pictures whose cosines measure similarity, such as CLIP's image tower."""

VIEW_METRICS = ("id", "reid_distance", "reid_match", "clip", "normal_error")
"""Metrics of single views in addition to those of `picture_metrics`."""
FACE_METRICS = Consistency._fields
"""Metrics of all views of a person by the recogniser."""
NEAR = 45.0
"""Largest angle between two views, in degrees, up to which they are compared with each other."""
EPIPOLAR = ("epipolar_share", "epipolar_median", "epipolar_tsed", "epipolar_matches")
HULL = ("hull_spread", "hull_ratio")
"""The spread of colours on the visual hull, and its multiple of that of the true views."""
BORDER = ("border_ratio",)
"""How much more views of two calls of the sampler differ than views of one, as a multiple of the same for the true views."""
CROSS_CONTROL = ("control_l2", "control_ssim", "control_lpips_alex")
"""How much views change with the stranger whose pictures say where the cameras are. Source: DiffPortrait3D, supplement."""
AGREEMENT = (*EPIPOLAR, *HULL, *BORDER)
"""Metrics of how well the views of a person fit together under their cameras; they need no weights."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics whose networks are at hand, and for each of the others the reason why it cannot be measured."""

    pictures: PictureMetrics
    faces: FaceEmbedder | None
    inception: Inception | None
    clip: PictureEmbedder | None
    reid_limit: float
    missing: Mapping[str, str]


def open_metrics(
    resolution: int,
    weights: str,
    device: str,
    faces: FaceEmbedder | None,
    clip: PictureEmbedder | None,
    reid_limit: float,
    without_faces: str = "it needs a recogniser; --recogniser names an ArcFace .onnx (or embedded)",
) -> Metrics:
    """Load the networks whose files exist; missing files are reasons, not errors."""
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
    return Metrics(pictures, faces, inception, clip, reid_limit, missing)


@dataclass(frozen=True, eq=False)
class TrueViews:
    """A person's true views, with what is computed of them once for all methods."""

    held: HeldOut
    rgb: Float32[Tensor, "k 3 h w"]
    """The targets in [0, 1]."""
    pixels: UInt8[np.ndarray, "k h w 3"]
    """The targets as 8-bit sRGB."""
    points: Float[np.ndarray, "k 5 2"] | None
    """Pixels of eyes, nose and corners of the mouth in each target, with a recogniser."""
    faces: FaceEmbeddings | None
    """The embeddings of the targets, with a recogniser."""
    source: Float32[np.ndarray, " d"] | None
    """The embedding of the input view, if a face is found there."""
    spread: float
    """The spread of colours that the targets have on their own visual hull; NaN without masks."""

    @property
    def cameras(self) -> Cameras:
        return self.held.cameras[slice(1, None)]


def true_views(metrics: Metrics, held: HeldOut) -> TrueViews:
    """Compute what all methods are compared with."""
    pictures, spread = to_bytes(held.rgb), _spread(held.rgb[1:], held)
    if metrics.faces is None:
        return TrueViews(held, to_unit(held.rgb[1:]), pictures[1:], None, None, None, spread)
    embedder = replace(metrics.faces, points=held.points)
    points, found = embedder.locate(pictures, held.cameras)
    faces = embedder.embed_at(pictures, points, found)
    source = faces.embedding[0] if found[0] else None
    targets = FaceEmbeddings(faces.embedding[1:], faces.found[1:])
    return TrueViews(held, to_unit(held.rgb[1:]), pictures[1:], points[1:], targets, source, spread)


def measure(metrics: Metrics, truth: TrueViews, made: EvaluatedViews) -> dict[str, Any]:
    """Measure a method: a list per metric of views and a number per metric of the person; NaN where nothing can be measured."""
    columns: dict[str, np.ndarray] = dict(metrics.pictures(to_unit(made.rgb), truth.rgb))
    person: dict[str, float] = {}
    pictures = to_bytes(made.rgb)
    if metrics.faces is not None and truth.faces is not None and truth.points is not None:
        found = replace(metrics.faces, points=made.points)(pictures, made.cameras)
        columns["id"] = identity_similarity(found, truth.faces)
        person |= identity_consistency(found, truth.source)._asdict()
        at_true_points = metrics.faces.embed_at(pictures, truth.points, truth.faces.found)
        reid = re_identification(at_true_points, truth.faces, metrics.reid_limit)
        columns["reid_distance"] = reid.distance
        if metrics.reid_limit:
            columns["reid_match"] = reid.match
    if metrics.clip is not None:
        columns["clip"] = similarity(metrics.clip, pictures, truth.pixels)
    if made.normal is not None and truth.held.normal is not None:
        columns["normal_error"] = _normal_errors(made.normal, truth.held)
    return {"views": {name: np.asarray(c, float).tolist() for name, c in columns.items()}, "person": person}


def _normal_errors(normal: Float32[Tensor, "k 3 h w"], held: HeldOut) -> np.ndarray:
    assert held.normal is not None
    true = held.normal[1:]
    # A background of normals is grey, which is no vector at all.
    mask = true.norm(dim=1) > 0.5 if held.alpha is None else held.alpha[1:] > 0.5
    return normal_error(normal, torch.nn.functional.normalize(true, dim=1), mask).numpy()


def agreement(made: EvaluatedViews, truth: TrueViews) -> dict[str, float]:
    """How well a person's views fit together under the true cameras; NaN where there is nothing to compare.

    The masks are those of the true views, so that a wrong outline counts as wrong colours.
    """
    held, cameras = truth.held, truth.cameras
    pairs = near_pairs(held.azimuth[1:], held.elevation[1:])
    masks = None if held.alpha is None else (held.alpha[1:] > 0.5).numpy()
    distances = epipolar_distances(to_bytes(made.rgb), cameras, pairs, masks)
    found = {figure.name: np.nan if figure.value is None else figure.value for figure in epipolar_figures(distances)}
    spread = _spread(made.rgb, held)
    found |= {"hull_spread": spread, "hull_ratio": spread / truth.spread if truth.spread else np.nan}
    if made.call is not None:
        ratio, true_ratio = (chunk_borders(p, made.call, pairs).ratio for p in (to_unit(made.rgb), truth.rgb))
        found["border_ratio"] = ratio / true_ratio if true_ratio else np.nan
    return found


def _spread(rgb: Float32[Tensor, "k 3 h w"], held: HeldOut) -> float:
    if held.alpha is None:
        return float("nan")
    spread = colour_spread(to_unit(rgb), held.alpha[1:] > 0.5, held.cameras[slice(1, None)])
    return float(spread.mean()) if len(spread) else float("nan")


def control_leak(metrics: Metrics, made: EvaluatedViews, other: EvaluatedViews) -> dict[str, float]:
    """The difference between views of a person that were made with the pictures of two strangers."""
    columns = metrics.pictures(to_unit(made.rgb), to_unit(other.rgb))
    names = [name for name in CROSS_CONTROL if name.removeprefix("control_") in columns]
    return {name: float(columns[name.removeprefix("control_")].mean()) for name in names}


def near_pairs(azimuth: Float32[np.ndarray, " v"], elevation: Float32[np.ndarray, " v"]) -> Int[np.ndarray, "p 2"]:
    """All pairs of views whose directions differ by at most NEAR degrees."""
    away = [angular_distance(azimuth, elevation, float(a), float(e)) for a, e in zip(azimuth, elevation, strict=True)]
    return np.argwhere(np.triu(np.array(away) <= NEAR, 1))
