"""Rays through the pixels of cameras."""

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras


def pixel_directions(K: Float[Tensor, "v 3 3"], resolution: int) -> Float[Tensor, "v h w 3"]:
    """Directions through the pixel centres in OpenCV camera axes, with z = 1: a distance along them is a depth."""
    centres = (torch.arange(resolution, dtype=K.dtype, device=K.device) + 0.5) / resolution
    row, column = torch.meshgrid(centres, centres, indexing="ij")
    fx, skew, cx, fy, cy = (K[:, i, j, None, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    y = (row - cy) / fy
    x = (column - cx - skew * y) / fx
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def rays(cameras: Cameras, resolution: int) -> tuple[Float[Tensor, "v 3"], Float[Tensor, "v h w 3"]]:
    """World origins and unit directions of the rays through the pixel centres of square images."""
    directions = pixel_directions(cameras.K, resolution) @ cameras.c2w[:, None, :3, :3].transpose(-1, -2)
    return cameras.positions, torch.nn.functional.normalize(directions, dim=-1)
