"""Which views go around the head together."""

import numpy as np
import pytest
import torch

from geometry.cameras import orbit
from infer.outputs.pictures import level_ring, rings
from infer.views import HeadViews


def turn(azimuth, elevation) -> HeadViews:
    n = len(azimuth)
    angles = (np.array(a, np.float32) for a in (azimuth, elevation))
    return HeadViews(torch.zeros(n, 3, 4, 4), None, *angles, np.zeros(n, bool), orbit(np.zeros(n), np.zeros(n)))


@pytest.mark.parametrize("elevation", [[0, 0, 0, 0], [0, 10, 0, -10]])
def test_a_path_is_one_row(elevation):
    path = turn([0, 90, 180, -90], elevation)
    assert [row.tolist() for row in rings(path)] == [[0, 1, 2, 3]]
    assert level_ring(path).tolist() == [0, 1, 2, 3]


def test_a_grid_has_a_row_for_each_height():
    grid = turn([0, 0, 90, 90, 360.0, -270], [-20, 5, -20, 5, 40, 40])
    assert [row.tolist() for row in rings(grid)] == [[4, 5], [1, 3], [0, 2]]
    assert level_ring(grid).tolist() == [1, 3]


def test_a_photo_at_another_height_is_no_row_to_turn_around():
    assert level_ring(turn([0, 0, 120, -120], [3, 10, 10, 10])).tolist() == [1, 2, 3]


def test_a_row_rises_whatever_the_order_that_was_asked_for():
    assert level_ring(turn([0, 180, 90], [0, 0, 0])).tolist() == [0, 2, 1]
    # An arc across the front stays one piece.
    assert level_ring(turn([0, 30, -30, 15], [0, 0, 0, 0])).tolist() == [2, 0, 3, 1]
