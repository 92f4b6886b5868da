"""Photo-consistency on the hull that masks carve."""

import numpy as np
import torch
from turntable import turntable

from geometry.cameras import orbit
from geometry.rays import rays
from infer.metrics.hull import colour_spread, hull_depths

AROUND = tuple(30.0 * i for i in range(12))


def ball(cameras, resolution, radius=0.2):
    """Masks of a ball, and pictures of it whose colour is that of the surface's direction."""
    origins, directions = rays(cameras, resolution)
    o = origins[:, None, None]
    along = (o * directions).sum(-1)
    under = along.square() - o.square().sum(-1) + radius**2
    points = o + directions * (-along - under.clamp(min=0).sqrt())[..., None]
    masks = under > 0
    return masks, torch.where(masks[..., None], 0.5 + points / radius / 2, 1.0).permute(0, 3, 1, 2)


def test_the_hull_of_a_ball_is_a_ball():
    azimuth, elevation = np.meshgrid(np.arange(8) * 45.0, [-60.0, 0.0, 60.0])
    cameras = orbit(azimuth.ravel(), elevation.ravel())
    masks, pictures = ball(cameras, 64)
    ticks = torch.linspace(-0.3, 0.3, 33)
    depth = torch.from_numpy(hull_depths(masks, cameras, ticks))
    distance = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij")).norm(dim=0)
    assert (depth[distance < 0.19] > 0).all() and not (depth[distance > 0.24] > 0).any()
    # The depth is the distance to the surface.
    between = (distance > 0.08) & (distance < 0.19)
    assert float((depth - (0.2 - distance))[between].abs().mean()) < 0.01
    spread = colour_spread(pictures, masks, cameras, 32)
    # Colours change by 0.08 from one cell to the next.
    assert len(spread) > 500 and spread.mean() < 0.05


def test_true_views_agree_and_drifting_colours_do_not():
    pictures, masks, cameras = turntable(52, AROUND, 96)
    tint = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 3, 1, 1))).float()
    means = []
    for drift in (0.0, 0.05, 0.1, 0.2):
        spread = colour_spread((pictures * (1 + drift * tint)).clamp(0, 1), masks, cameras, 48)
        assert len(spread) > 1000
        means.append(float(spread.mean()))
    assert means[0] < 0.04
    assert means == sorted(means) and means[2] > 1.5 * means[0] and means[3] > 2.5 * means[0]


def test_another_person_in_half_of_the_views_does_not_agree():
    pictures, masks, cameras = turntable(52, AROUND, 96)
    other = turntable(3, AROUND, 96)[0]
    mixed = torch.where(torch.arange(12)[:, None, None, None] % 2 == 0, pictures, other)
    true, wrong = (float(colour_spread(p, masks, cameras, 48).mean()) for p in (pictures, mixed))
    assert wrong > 2 * true


def test_empty_masks_leave_no_surface():
    pictures, masks, cameras = turntable(52, AROUND, 96)
    assert len(colour_spread(pictures, torch.zeros_like(masks), cameras, 16)) == 0
