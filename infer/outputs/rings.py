"""The rows of a turn: views that go around the head at one height."""

import numpy as np
from jaxtyping import Int

from infer.turn import Turn


def rings(turn: Turn) -> list[Int[np.ndarray, " _"]]:
    """Places of the views of each height, from the highest; one row of all views if no azimuth comes twice."""
    azimuth = np.round(turn.azimuth % 360, 1) % 360
    if len(np.unique(azimuth)) == len(turn):
        return [np.arange(len(turn))]
    height = np.round(turn.elevation, 1)
    return [np.flatnonzero(height == level) for level in np.unique(height)[::-1]]


def level(turn: Turn) -> Int[np.ndarray, " _"]:
    """Of the rows that are not but a few views, the one nearest to eye level."""
    rows = rings(turn)
    most = max(map(len, rows))
    return min((row for row in rows if 2 * len(row) > most), key=lambda row: abs(turn.elevation[row].mean()))
