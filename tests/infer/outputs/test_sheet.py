"""The contact sheet shows every view where it belongs."""

import numpy as np
from turns import ball_turn

from infer.outputs.pictures import LABEL, TILE, sheet


def test_rows_of_pictures_and_normals():
    turn = ball_turn([0, 120, -120] * 2, [20] * 3 + [0] * 3)
    image = sheet(turn)
    high = 2 * TILE + LABEL
    assert image.shape == (2 * high, 3 * TILE, 3)
    for row, ring in enumerate(([0, 1, 2], [3, 4, 5])):
        for column, view in enumerate(ring):
            tile = image[row * high :, column * TILE :]
            for member, views in enumerate((turn.rgb, turn.normal)):
                centre = views[view, :, 24, 24].numpy()
                assert np.abs(tile[member * TILE + TILE // 2, TILE // 2] - (centre + 1) * 127.5).max() < 8
            assert (tile[high - LABEL : high, :TILE] < 200).any(), "an azimuth is printed"
    assert (image[1, 1:TILE] < 30).all(), "the given view has a frame"
    assert (image[1, TILE : 2 * TILE] > 250).all() and (image[high + 1, :TILE] > 250).all()


def test_a_long_ring_is_broken_evenly():
    turn = ball_turn(np.arange(25) * 14.4, [0] * 25, 16)
    assert sheet(turn).shape == (3 * (2 * TILE + LABEL), 9 * TILE, 3)
