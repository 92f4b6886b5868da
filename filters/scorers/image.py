"""Scores of the picture: fog, heads beyond its border, empty pictures, and blurred backs."""

import numpy as np
from jaxtyping import Float, UInt8

from filters.scorer import Columns, Scorer, ScorerContext, Subject
from filters.scorers.silhouette import border, fog, reduce, sharpness
from geometry.directions import turned
from manifests.scores import IDENTITY, VIEW, Lineage, column

FRONT, BACK = 60.0, 120.0
"""Largest angle from the front of a frontal view, and smallest of a back view, in degrees."""


class ImageScorer(Scorer):
    """Fog, truncation, contrast and sharpness of every view; per identity the sharpness of the back relative to the front."""

    table = "image"
    members = ("rgb", "alpha")
    columns = (
        column("fog", VIEW, "half-transparent area away from contours, as a share of the head"),
        column("border", VIEW, "largest share of the top, left or right border that the head covers"),
        column("coverage", VIEW, "share of the picture that the head fills"),
        column("contrast", VIEW, "standard deviation of the luminance within the head, 0 to 1"),
        column("sharpness", VIEW, "variance of the Laplacian within the head"),
        column(
            "back_sharpness", IDENTITY, "median sharpness of the views turned 120 degrees or more over those up to 60"
        ),
    )
    lineage = Lineage("image", 1, None)

    def prepare(self, subject: Subject) -> Columns:
        views = measure_pictures(subject.member("rgb"), subject.member("alpha"))
        away = turned(subject.azimuth)
        front, back = (_median(views["sharpness"][which]) for which in (away <= FRONT, away >= BACK))
        return {**views, "back_sharpness": back / front if front else np.nan}


def open_scorer(context: ScorerContext) -> ImageScorer:
    """The scorer, which has no options."""
    return ImageScorer()


def measure_pictures(
    rgb: UInt8[np.ndarray, "v h w 3"], alpha: UInt8[np.ndarray, "v h w"]
) -> dict[str, Float[np.ndarray, " v"]]:
    """Measures of pictures (sRGB) and of their alphas, by name."""
    # Luma of ITU-R BT.601.
    luminance = (rgb @ np.array([0.299, 0.587, 0.114], np.float32)).round().astype(np.uint8)
    inside = alpha >= 128
    reduced = reduce(alpha)
    return {
        name: np.array(values, np.float32)
        for name, values in (
            ("fog", [fog(a) for a in reduced]),
            ("border", [border(a) for a in reduced]),
            ("coverage", inside.mean((1, 2))),
            ("contrast", [l[i].std() / 255 if i.any() else np.nan for l, i in zip(luminance, inside, strict=True)]),
            ("sharpness", [sharpness(l, i) for l, i in zip(luminance, inside, strict=True)]),
        )
    }


def _median(values: Float[np.ndarray, " k"]) -> float:
    """The median of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
