"""Turns as a perfect model would make them."""

import numpy as np
import torch
from turntable import turntable

from geometry.cameras import orbit
from geometry.rays import rays
from infer.views import HeadViews

AROUND = tuple(30.0 * i for i in range(12))


def head_turn(azimuths: tuple[float, ...] = AROUND, resolution: int = 96, seed: int = 52) -> HeadViews:
    """A procedural head at eye level without normals; the first view is given."""
    pictures, _, _ = turntable(seed, azimuths, resolution)
    azimuth = np.array(azimuths, np.float32)
    level, first = np.zeros_like(azimuth), np.arange(len(azimuth)) == 0
    return HeadViews(
        2 * pictures.float() - 1, None, azimuth, level, first, orbit(azimuth.astype(float), level.astype(float))
    )


def ball_turn(azimuth, elevation, resolution: int = 48, radius: float = 0.2) -> HeadViews:
    """A ball whose colours are those of its directions, with its normals; the first view is given."""
    azimuth, elevation = np.array(azimuth, np.float32), np.array(elevation, np.float32)
    cameras = orbit(azimuth.astype(float), elevation.astype(float))
    origins, directions = rays(cameras, resolution)
    o = origins[:, None, None]
    along = (o * directions).sum(-1)
    under = along.square() - o.square().sum(-1) + radius**2
    normals = (o + directions * (-along - under.clamp(min=0).sqrt())[..., None]) / radius
    on = (under > 0)[..., None]
    rgb = torch.where(on, 0.6 * normals, 1.0)
    seen = torch.where(on, normals @ cameras.view_rotation[:, None].transpose(-1, -2), 0.0)
    first = np.arange(len(azimuth)) == 0
    return HeadViews(
        rgb.permute(0, 3, 1, 2).contiguous(), seen.permute(0, 3, 1, 2).contiguous(), azimuth, elevation, first, cameras
    )
