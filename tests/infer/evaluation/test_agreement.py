"""Metrics of views that agree, or do not, on procedural heads whose true views are known."""

from functools import cache

import numpy as np
import pytest
import torch
from turntable import turntable

from infer.evaluation.held_out import HeldOut
from infer.evaluation.measure import AGREEMENT, TrueViews, agreement, near_pairs, open_metrics, true_views
from infer.evaluation.methods import EvaluatedViews, copied_input

AZIMUTH = tuple(30.0 * i for i in range(12))


@cache
def held() -> HeldOut:
    rgb, masks, cameras = turntable(52, AZIMUTH, 128)
    azimuth = np.array(AZIMUTH, np.float32)
    names = tuple(f"v{i}" for i in range(12))
    points = np.zeros((5, 3), np.float32)
    return HeldOut("52", names, rgb * 2 - 1, None, masks.float(), cameras, azimuth, 0 * azimuth, points, None)


@cache
def truth() -> TrueViews:
    return true_views(open_metrics(128, "nowhere", "cpu", None, None, 0.0), held())


def made(rgb: torch.Tensor, call: np.ndarray | None = None) -> EvaluatedViews:
    return EvaluatedViews(rgb, None, held().cameras[slice(1, None)], held().points, call)


def test_true_views_agree():
    found = agreement(made(held().rgb[1:], np.arange(11) // 4), truth())
    assert set(found) == set(AGREEMENT)
    assert found["hull_ratio"] == found["border_ratio"] == 1
    assert found["epipolar_share"] > 0.6 and 0 < found["hull_spread"] < 0.1


def test_tints_of_calls_show_at_their_borders_and_on_the_hull():
    call = np.arange(11) // 4
    tint = torch.tensor([0.0, 0.3, -0.3])[call][:, None, None, None]
    found = agreement(made((held().rgb[1:] + tint).clamp(-1, 1), call), truth())
    assert found["border_ratio"] > 1.2 and found["hull_ratio"] > 1.2


def test_one_picture_in_the_place_of_all_shows_on_the_hull_alone():
    found = agreement(copied_input(held()), truth())
    assert found["hull_ratio"] > 1.5
    # Epipolar lines of a level ring are nearly level, and along them anything goes.
    assert found["epipolar_share"] > 0.9
    # It is made by no call.
    assert "border_ratio" not in found


def test_what_cannot_be_said_is_not_a_number():
    blank = torch.zeros_like(held().rgb[1:])
    found = agreement(made(blank, np.zeros(11, int)), truth())
    assert np.isnan(found["epipolar_share"]) and np.isnan(found["border_ratio"])
    assert found["epipolar_matches"] == 0 and found["hull_spread"] == pytest.approx(0, abs=1e-6)


def test_near_pairs_are_each_taken_once():
    azimuth, elevation = np.array([0, 40, 90, -175, 175], np.float32), np.zeros(5, np.float32)
    assert near_pairs(azimuth, elevation).tolist() == [[0, 1], [3, 4]]
    assert near_pairs(azimuth, np.array([0, 40, 0, 0, 0], np.float32)).tolist() == [[3, 4]]
