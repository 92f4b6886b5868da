"""Whether generated views fit together, without weights: under the known cameras, and across the chunks they were made in."""

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
"""How much nearer a match must be than the second best. Source: Lowe 2004, section 7.1."""
EDGE = 2
"""Pixels inside a contour where nothing is matched: contours move with the camera and are no spots of a surface."""
ENOUGH = 10
"""Matches without which a pair of views cannot be judged consistent. Source: Yu et al. 2023."""


def ring(views: int) -> Int[np.ndarray, "p 2"]:
    """Neighbours of a closed turntable, in order around it."""
    return np.stack([np.arange(views), (np.arange(views) + 1) % views], axis=1)


class Spots(NamedTuple):
    """Pixels of the same spots in two pictures; pixel centres at +0.5."""

    first: Float[np.ndarray, "n 2"]
    second: Float[np.ndarray, "n 2"]


def match(
    first: UInt8[np.ndarray, "h w 3"],
    second: UInt8[np.ndarray, "h w 3"],
    masks: tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]] | None = None,
) -> Spots:
    """SIFT features that two pictures (RGB) have in common: each the other's best by far, inside the masks if given."""
    masks_of = masks or (None, None)
    return _common(_features(first, masks_of[0]), _features(second, masks_of[1]))


def _common(first: "_Features", second: "_Features") -> Spots:
    (here, a), (there, b) = first, second
    if a is None or b is None or min(len(a), len(b)) < 2:
        return Spots(here[:0], there[:0])
    back = _best(b, a)
    pairs = [(i, j) for i, j in _best(a, b).items() if back.get(j) == i]
    return Spots(here[[i for i, _ in pairs]], there[[j for _, j in pairs]])


class _Features(NamedTuple):
    """Pixels of the features of a picture, and what they look like; None if there are none."""

    pixels: Float[np.ndarray, "n 2"]
    looks: Float32[np.ndarray, "n d"] | None


def _features(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"] | None) -> _Features:
    window = None
    if mask is not None:
        window = cv2.erode(mask.astype(np.uint8), np.ones((2 * EDGE + 1, 2 * EDGE + 1), np.uint8))
    points, looks = cv2.SIFT.create().detectAndCompute(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), window)
    # OpenCV counts from the centre of the first pixel.
    return _Features(np.array([point.pt for point in points]).reshape(-1, 2) + 0.5, looks)


def _best(a: Float32[np.ndarray, "n d"], b: Float32[np.ndarray, "m d"]) -> dict[int, int]:
    """For each row of a that has one, the row of b that is nearer than the second best by far."""
    nearest = cv2.BFMatcher().knnMatch(a, b, k=2)
    return {one.queryIdx: one.trainIdx for one, two in nearest if one.distance < RATIO * two.distance}


def epipolar_distances(
    pictures: UInt8[np.ndarray, "v h w 3"],
    cameras: Cameras,
    pairs: Int[np.ndarray, "p 2"],
    masks: Bool[np.ndarray, "v h w"] | None = None,
) -> list[Float[np.ndarray, " _"]]:
    """For each pair of views the symmetric epipolar distances (pixels) of its matches under the known cameras.

    It sees what moves off its epipolar line, which on a turntable is up and down; along the line anything goes.
    """
    cameras = cameras.to("cpu")
    matrices = fundamental(cameras[pairs[:, 0].tolist()], cameras[pairs[:, 1].tolist()], pictures.shape[1])
    # Each view is in several pairs and looked at once.
    features = {i: _features(pictures[i], None if masks is None else masks[i]) for i in np.unique(pairs).tolist()}
    distances = []
    for (i, j), F in zip(pairs.tolist(), matrices, strict=True):
        spots = _common(features[i], features[j])
        distances.append(epipolar_distance(F, torch.from_numpy(spots.first), torch.from_numpy(spots.second)).numpy())
    return distances


def epipolar_figures(distances: Sequence[Float[np.ndarray, " _"]], within: float = 2.0) -> list[Figure]:
    """Rows of the distances of many pairs: share of matches within some pixels, their median, matches per pair.

    And the share of pairs with 10 matches or more whose median is within (TSED). Source: Yu et al. 2023.
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
    """Mean distances of neighbouring views within chunks and across their borders; NaN where there are none."""

    inside: float
    across: float

    @property
    def ratio(self) -> float:
        """1 where borders do not show."""
        return self.across / self.inside if self.inside else float("nan")


def chunk_borders(
    pictures: Float[Tensor, "v 3 h w"],
    chunk: Int[np.ndarray, " v"],
    pairs: Int[np.ndarray, "p 2"],
    distance: Measure = l2,
) -> Borders:
    """How much neighbouring views differ within the chunks they were made in, and across them.

    Pictures in [0, 1], `chunk` numbers what was made together; `distance` may be LPIPS. Profiles change faster than fronts,
    so compare with the same figure of true views.
    """
    i, j = pairs.T
    apart = distance(pictures[torch.from_numpy(i)], pictures[torch.from_numpy(j)]).cpu().numpy()
    border = chunk[i] != chunk[j]
    return Borders(*(float(d.mean()) if len(d) else float("nan") for d in (apart[~border], apart[border])))
