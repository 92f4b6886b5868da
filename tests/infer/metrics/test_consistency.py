"""Consistency without weights, on turntables of procedural heads whose cameras are known."""

import numpy as np
import pytest
import torch
from turntable import in_bytes, turntable

from geometry.cameras import orbit
from infer.metrics.consistency import chunk_borders, epipolar_distances, epipolar_figures

ARC = tuple(15.0 * i for i in range(6))
ALONG = np.stack([np.arange(5), np.arange(1, 6)], axis=1)


def figures(cameras, within: float = 2.0, pictures=None) -> dict[str, float]:
    rgb, masks, _ = turntable(52, ARC, 256)
    distances = epipolar_distances(in_bytes(rgb) if pictures is None else pictures, cameras, ALONG, masks.numpy())
    return {row.name: row.value for row in epipolar_figures(distances, within)}


def test_matches_of_true_cameras_lie_on_their_lines():
    found = figures(turntable(52, ARC, 256)[2])
    assert found["epipolar_median"] < 0.4
    assert found["epipolar_share"] > 0.8
    assert found["epipolar_tsed"] == 1 and found["epipolar_matches"] > 20


def test_cameras_that_are_off_show_in_proportion():
    azimuth, uneven = np.array(ARC), np.array([1.0, -1, 1, -1, 1, -1])
    medians = [figures(orbit(azimuth, off * uneven))["epipolar_median"] for off in (0.0, 1.0, 3.0)]
    assert medians[0] < 0.4 and medians[1] > medians[0] + 0.5 and medians[2] > 2 * medians[1]
    assert figures(orbit(azimuth, 3 * uneven))["epipolar_tsed"] == 0


def test_views_that_do_not_keep_their_height_show():
    pictures = in_bytes(turntable(52, ARC, 256)[0])
    pictures[1::2] = np.roll(pictures[1::2], 4, axis=1)
    found = figures(turntable(52, ARC, 256)[2], pictures=pictures)
    assert 3 < found["epipolar_median"] < 5 and found["epipolar_share"] < 0.2


def test_backgrounds_and_contours_are_not_matched_with_masks():
    """A background that moves down by 9 pixels from one view to the next spoils the distances, unless masks exclude it."""
    rgb, masks, cameras = turntable(52, ARC[:2], 256)
    texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    pictures = in_bytes(rgb)
    for view in range(2):
        pictures[view][~masks[view].numpy()] = np.roll(texture, 9 * view, 0)[~masks[view].numpy()]
    (plain,) = epipolar_distances(pictures, cameras, np.array([[0, 1]]))
    (inside,) = epipolar_distances(pictures, cameras, np.array([[0, 1]]), masks.numpy())
    assert 10 < len(inside) < len(plain)
    assert np.median(inside) < 1 < 5 < np.median(plain)


def test_pictures_without_features_are_a_reason():
    blank = np.full((3, 64, 64, 3), 200, np.uint8)
    rows = epipolar_figures(epipolar_distances(blank, orbit(np.zeros(3), np.zeros(3)), ring(3)))
    by_name = {row.name: row for row in rows}
    assert by_name["epipolar_median"].reason == "SIFT finds no spot twice in 3 pairs of views"
    assert by_name["epipolar_tsed"].value == by_name["epipolar_matches"].value == 0
    assert all(row.reason == "there is no pair of views" for row in epipolar_figures([]))


def ring(views: int) -> np.ndarray:
    """Neighbours of a closed turntable."""
    return np.stack([np.arange(views), (np.arange(views) + 1) % views], axis=1)


def test_borders_of_chunks_show_where_colours_jump():
    pictures = torch.linspace(0.2, 0.5, 6)[:, None, None, None].repeat(1, 3, 8, 8)
    chunk = np.array([0, 0, 0, 1, 1, 1])
    even = chunk_borders(pictures, chunk, ring(6)[:-1])
    assert even.ratio == pytest.approx(1, rel=1e-4)
    pictures[3:] += 0.3
    jump = chunk_borders(pictures, chunk, ring(6)[:-1])
    assert jump.inside == pytest.approx(even.inside, rel=1e-4)
    assert jump.across == pytest.approx(0.36**2, rel=1e-4) and jump.ratio == pytest.approx(36, rel=1e-3)


def test_borders_of_a_closed_turntable_and_of_another_distance():
    pictures, chunk = torch.zeros(4, 3, 8, 8), np.array([0, 0, 1, 1])
    pictures[3] = 0.5

    def largest(a, b):
        return (a - b).abs().flatten(1).amax(1)

    assert tuple(chunk_borders(pictures, chunk, ring(4), largest)) == (0.25, 0.25)
    assert tuple(chunk_borders(pictures, chunk, ring(4)[:-1], largest)) == (0.25, 0.0)
    one = chunk_borders(pictures, np.zeros(4, int), ring(4), largest)
    assert np.isnan(one.across) and np.isnan(one.ratio)
