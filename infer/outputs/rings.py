"""The rows of a turn: views that go around the head at one height."""

import numpy as np
from jaxtyping import Float, Int

from infer.turn import Turn


def rings(turn: Turn) -> list[Int[np.ndarray, " _"]]:
    """Places of the views of each height by rising azimuth, from the highest; one row if no azimuth comes twice."""
    azimuth = np.round(turn.azimuth % 360, 1) % 360
    if len(np.unique(azimuth)) == len(turn):
        return [_around(azimuth)]
    height, order = np.round(turn.elevation, 1), _around(azimuth)
    return [order[height[order] == level] for level in np.unique(height)[::-1]]


def _around(azimuth: Float[np.ndarray, " v"]) -> Int[np.ndarray, " v"]:
    """The order of rising azimuth from 0, or from behind the widest gap, so that an arc across the front stays one piece."""
    order = np.argsort(azimuth, kind="stable")
    gaps = (azimuth[order] - np.roll(azimuth[order], 1)) % 360
    # Gaps of an even turn differ by the rounding to tenths of a degree.
    return np.roll(order, -int(gaps.argmax())) if gaps.max() > gaps[0] + 0.3 else order


def level(turn: Turn) -> Int[np.ndarray, " _"]:
    """Of the rows that are not but a few views, the one nearest to eye level."""
    rows = rings(turn)
    most = max(map(len, rows))
    return min((row for row in rows if 2 * len(row) > most), key=lambda row: abs(turn.elevation[row].mean()))
