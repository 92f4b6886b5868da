"""How well the views of a person fit together under their cameras, beside how well the true ones do; needs no weights."""

import numpy as np
from jaxtyping import Float32, Int
from torch import Tensor

from geometry.directions import angular_distance
from infer.evaluation.held_out import HeldOut
from infer.evaluation.novel_views import Shown
from infer.metrics.consistency import chunk_borders, epipolar_distances, epipolar_figures
from infer.metrics.hull import colour_spread
from infer.metrics.pixels import to_bytes, to_unit

NEAR = 45.0
"""Degrees up to which two views show enough of the same to be compared."""
EPIPOLAR = ("epipolar_share", "epipolar_median", "epipolar_tsed", "epipolar_matches")
HULL = ("hull_spread", "hull_ratio")
"""The spread of colours on the visual hull, and how many times that of the true views it is."""
BORDER = ("border_ratio",)
"""How much more views of two calls of the sampler differ than views of one, as a multiple of the same for the true views."""
AGREEMENT = (*EPIPOLAR, *HULL, *BORDER)


def true_spread(held: HeldOut) -> float:
    """The spread of colours that the true targets have on their own hull; NaN without masks."""
    return _spread(held.rgb[1:], held)


def agreement(shown: Shown, held: HeldOut, of_truth: float) -> dict[str, float]:
    """Figures of one person's views where they claim to be seen from; NaN where there is nothing to compare.

    Masks are those of the true views, so that a wrong outline counts as wrong colours; `of_truth` is `true_spread`.
    """
    made, true, cameras = to_unit(shown.rgb), to_unit(held.rgb[1:]), held.cameras[slice(1, None)]
    pairs = near_pairs(held.azimuth[1:], held.elevation[1:])
    masks = None if held.alpha is None else (held.alpha[1:] > 0.5).numpy()
    apart = epipolar_distances(to_bytes(shown.rgb), cameras, pairs, masks)
    found = {figure.name: np.nan if figure.value is None else figure.value for figure in epipolar_figures(apart)}
    spread = _spread(shown.rgb, held)
    found |= {"hull_spread": spread, "hull_ratio": spread / of_truth if of_truth else np.nan}
    if shown.call is not None:
        own, usual = (chunk_borders(pictures, shown.call, pairs).ratio for pictures in (made, true))
        found["border_ratio"] = own / usual if usual else np.nan
    return found


def _spread(rgb: Float32[Tensor, "k 3 h w"], held: HeldOut) -> float:
    if held.alpha is None:
        return float("nan")
    spread = colour_spread(to_unit(rgb), held.alpha[1:] > 0.5, held.cameras[slice(1, None)])
    return float(spread.mean()) if len(spread) else float("nan")


def near_pairs(azimuth: Float32[np.ndarray, " v"], elevation: Float32[np.ndarray, " v"]) -> Int[np.ndarray, "p 2"]:
    """All pairs of views whose directions are no further apart than NEAR."""
    away = [angular_distance(azimuth, elevation, float(a), float(e)) for a, e in zip(azimuth, elevation, strict=True)]
    return np.argwhere(np.triu(np.array(away) <= NEAR, 1))
