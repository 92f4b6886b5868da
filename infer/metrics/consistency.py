"""Consistency of generated views without weights: under the known cameras, and across the calls that sampled them."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from geometry.cameras import Cameras
from geometry.rays import epipolar_distance, fundamental
from infer.metrics.figures import Figure, absent
from infer.metrics.pixels import Measure, l2

RATIO = 0.8
"""Largest ratio of the distances of the best and the second best match. Source: Lowe 2004, section 7.1."""
EDGE = 2
"""Pixels inside a contour without features: contours move with the camera, and are no points of a surface."""
ENOUGH = 10
"""Fewest matches of a pair of views that can count as consistent. Source: Yu et al. 2023."""


class _Features(NamedTuple):
    """Positions of the SIFT features of a picture, pixel centres at +0.5, and their descriptors; None without features."""

    pixels: Float[np.ndarray, "n 2"]
    descriptors: Float32[np.ndarray, "n d"] | None


def _features(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"] | None) -> _Features:
    window = None
    if mask is not None:
        window = cv2.erode(mask.astype(np.uint8), np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8))
    points, descriptors = cv2.SIFT.create().detectAndCompute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), window)
    # OpenCV counts from the centre of the first pixel.
    return _Features(np.array([point.pt for point in points]).reshape(-1, 2) + 0.5, descriptors)


def _best(a: Float32[np.ndarray, "n d"], b: Float32[np.ndarray, "m d"]) -> dict[int, int]:
    """For each row of a, the nearest row of b, if it passes the ratio test."""
    nearest = cv2.BFMatcher().knnMatch(a, b, k=2)
    return {one.queryIdx: one.trainIdx for one, two in nearest if one.distance < RATIO * two.distance}


def _matches(first: "_Features", second: "_Features") -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Positions of the features of two pictures that are each other's best match."""
    (at, a), (other_at, b) = first, second
    if a is None or b is None or min(len(a), len(b)) < 2:
        return at[:0], other_at[:0]
    back = _best(b, a)
    pairs = [(i, j) for i, j in _best(a, b).items() if back.get(j) == i]
    return at[[i for i, _ in pairs]], other_at[[j for _, j in pairs]]


def epipolar_distances(
    pictures: UInt8[np.ndarray, "v h w 3"],
    cameras: Cameras,
    pairs: Int[np.ndarray, "p 2"],
    masks: Bool[np.ndarray, "v h w"] | None = None,
) -> list[Float[np.ndarray, " _"]]:
    """For each pair of views the symmetric epipolar distances, in pixels, of its matches under the known cameras.

    Motion along epipolar lines, which are nearly horizontal on a turntable, is not detected. Pictures are sRGB.
    """
    cameras = cameras.to("cpu")
    matrices = fundamental(cameras[pairs[:, 0].tolist()], cameras[pairs[:, 1].tolist()], pictures.shape[1])
    # Each view is in several pairs, and its features are computed once.
    features = {i: _features(pictures[i], None if masks is None else masks[i]) for i in np.unique(pairs).tolist()}
    distances = []
    for (i, j), F in zip(pairs.tolist(), matrices, strict=True):
        first, second = _matches(features[i], features[j])
        distances.append(epipolar_distance(F, torch.from_numpy(first), torch.from_numpy(second)).numpy())
    return distances


def epipolar_figures(distances: Sequence[Float[np.ndarray, " _"]], within: float = 2.0) -> list[Figure]:
    """Figures of the distances of many pairs of views.

    The share of matches within some pixels, the median distance, the matches per pair, and the share of pairs with 10 matches
    or more whose median is within (TSED). Source: Yu et al. 2023.
    """
    names = ("epipolar_share", "epipolar_median", "epipolar_matches", "epipolar_tsed")
    if not distances:
        return absent(names, "there is no pair of views")
    every, pairs = np.concatenate(distances), len(distances)
    good = sum(len(d) >= ENOUGH and float(np.median(d)) < within for d in distances)
    rows = [Figure(names[2], len(every) / pairs, pairs), Figure(names[3], good / pairs, pairs)]
    if not len(every):
        return absent(names[:2], f"SIFT finds no spot twice in {pairs} pairs of views") + rows
    share, median = float((every < within).mean()), float(np.median(every))
    return [Figure(names[0], share, len(every)), Figure(names[1], median, len(every)), *rows]


class Borders(NamedTuple):
    """Mean distances of neighbouring views of one call and of two calls; NaN where there are none."""

    inside: float
    across: float

    @property
    def ratio(self) -> float:
        """Their quotient, which is 1 where borders between calls are not visible."""
        return self.across / self.inside if self.inside else float("nan")


def chunk_borders(
    pictures: Float[Tensor, "v 3 h w"],
    chunk: Int[np.ndarray, " v"],
    pairs: Int[np.ndarray, "p 2"],
    distance: Measure = l2,
) -> Borders:
    """How much neighbouring views (`pairs`) differ within the calls that sampled them, and across calls.

    Pictures are in [0, 1], `chunk` is the number of each view's call, and `distance` may be LPIPS. Profiles change faster than
    fronts, so compare with the same figure of true views.
    """
    i, j = pairs.T
    apart = distance(pictures[torch.from_numpy(i)], pictures[torch.from_numpy(j)]).cpu().numpy()
    border = chunk[i] != chunk[j]
    return Borders(*(float(d.mean()) if len(d) else float("nan") for d in (apart[~border], apart[border])))
