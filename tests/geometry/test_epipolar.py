"""Epipolar lines of known cameras."""

import numpy as np
import torch

from geometry.cameras import Cameras, intrinsics, orbit
from geometry.rays import epipolar_distance, fundamental

POINTS = torch.from_numpy(np.random.default_rng(0).uniform(-0.4, 0.4, (50, 3)).astype(np.float32))
FIRST = orbit(np.array([0.0, 40.0, 180.0]), np.array([0.0, -20.0, 10.0]))
SECOND = orbit(np.array([15.0, 55.0, 170.0]), np.array([5.0, 0.0, 10.0]), radius=3.0, focal=3.5)


def test_points_lie_on_the_lines_of_their_partners():
    p, q = (c.project(POINTS, 256)[..., :2] for c in (FIRST, SECOND))
    for F, one, two in zip(fundamental(FIRST, SECOND, 256), p, q, strict=True):
        assert epipolar_distance(F, one, two).max() < 1e-3


def test_cameras_off_centre_and_with_skew():
    K = intrinsics(4.0, 3) + torch.tensor([[0.0, 0.1, 0.05], [0.0, -0.4, -0.1], [0.0, 0.0, 0.0]])
    skewed = Cameras(SECOND.c2w, K)
    p, q = FIRST.project(POINTS, 64)[0, :, :2], skewed.project(POINTS, 64)[0, :, :2]
    assert epipolar_distance(fundamental(FIRST, skewed, 64)[0], p, q).max() < 1e-3


def test_the_distance_is_in_pixels_and_means_both_directions():
    flat = fundamental(orbit(np.zeros(1), np.zeros(1)), Cameras(_moved(FIRST[[0]], x=0.5), FIRST.K[:1]), 100)[0]
    p, q = torch.tensor([[30.0, 40.0]]), torch.tensor([[10.0, 43.0]])
    # Side by side, lines are the rows of pixels.
    torch.testing.assert_close(epipolar_distance(flat, p, q).float(), torch.tensor([3.0]))
    zoomed = Cameras(_moved(FIRST[[0]], x=0.5), FIRST.K[:1] * torch.tensor([2.0, 2.0, 1.0])[:, None])
    F = fundamental(orbit(np.zeros(1), np.zeros(1)), zoomed, 100)[0]
    # 3 pixels in the larger picture are 1.5 in the smaller.
    torch.testing.assert_close(epipolar_distance(F, p, torch.tensor([[10.0, 83.0]])).float(), torch.tensor([2.25]))


def test_it_is_the_same_the_other_way_around():
    p, q = torch.rand(20, 2) * 64, torch.rand(20, 2) * 64
    there, back = fundamental(FIRST, SECOND, 64), fundamental(SECOND, FIRST, 64)
    for F, G in zip(there, back, strict=True):
        torch.testing.assert_close(epipolar_distance(F, p, q), epipolar_distance(G, q, p), atol=1e-3, rtol=1e-4)


def test_a_camera_that_is_off_shows():
    p, q = FIRST.project(POINTS, 256)[0, :, :2], SECOND.project(POINTS, 256)[0, :, :2]
    errors = []
    for off in (0.0, 1.0, 3.0, 9.0):
        wrong = orbit(np.array([15.0]), np.array([5.0 + off]), radius=3.0, focal=3.5)
        errors.append(float(epipolar_distance(fundamental(FIRST[[0]], wrong, 256)[0], p, q).mean()))
    assert errors == sorted(errors) and errors[1] > 0.5


def _moved(cameras: Cameras, x: float) -> torch.Tensor:
    c2w = cameras.c2w.clone()
    c2w[:, 0, 3] += x
    return c2w
