"""Fog in front of and around a rendered head, integrated in closed form along each pixel's ray."""

import math

import torch
from torch import Tensor

from datagen.heads import RenderedViews
from datagen.sources.procedural.defects import Haze
from geometry.cameras import Cameras


def veil(views: RenderedViews, cameras: Cameras, haze: Haze) -> RenderedViews:
    """The views seen through fog; the surface itself stays where it is."""
    return RenderedViews(
        *(torch.stack(x) for x in zip(*(_veil(views, cameras, haze, i) for i in range(len(cameras))), strict=True))
    )


def _veil(views: RenderedViews, cameras: Cameras, haze: Haze, view: int) -> tuple[Tensor, Tensor, Tensor]:
    rgb, alpha, depth = views.rgb[view], views.alpha[view], views.depth[view]
    resolution = alpha.shape[0]
    ticks = torch.arange(resolution) + 0.5
    pixels = torch.stack([*torch.meshgrid(ticks, ticks, indexing="xy"), torch.ones(resolution, resolution)], -1)
    rays = pixels @ torch.linalg.inv(cameras.pixel_K(resolution)[view]).T @ cameras.c2w[view, :3, :3].T
    scale = rays.norm(dim=-1)
    closest, through = _integral(haze, cameras.positions[view], rays / scale[..., None])
    fog = torch.tensor(haze.colour)
    behind = torch.exp(-through(torch.full_like(depth, 1e3)))[..., None]
    before = torch.exp(-through(depth * scale))[..., None]
    a = alpha[..., None]
    seen = (rgb - (1 - a)) * before + a * fog * (1 - before) + (1 - a) * (behind + fog * (1 - behind))
    covered = 1 - (1 - alpha) * behind[..., 0]
    return seen.clamp(0, 1), covered, torch.where(alpha > 0, depth, closest / scale)


def _integral(haze: Haze, eye: Tensor, rays: Tensor):
    """Distance of each ray's densest point, and the optical depth along it up to a distance."""
    offset = torch.tensor(haze.centre) - eye
    closest = rays @ offset
    squared = (offset @ offset) - closest**2
    width = math.sqrt(2) * haze.radius
    peak = 0.5 * haze.opacity * torch.exp(-squared / width**2)

    def through(distance: Tensor) -> Tensor:
        return peak * (torch.erf((distance - closest) / width) + torch.erf(closest / width))

    return closest, through
