"""Rays through the pixels of cameras, and their epipolar lines in the images of other cameras."""

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras


def pixel_directions(K: Float[Tensor, "*b 3 3"], resolution: int) -> Float[Tensor, "*b h w 3"]:
    """Directions through the pixel centres in OpenCV camera axes, scaled to z = 1 so that distances along them are depths."""
    centres = (torch.arange(resolution, dtype=K.dtype, device=K.device) + 0.5) / resolution
    row, column = torch.meshgrid(centres, centres, indexing="ij")
    fx, skew, cx, fy, cy = (K[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2)))
    y = (row - cy) / fy
    x = (column - cx - skew * y) / fx
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def rays(cameras: Cameras, resolution: int) -> tuple[Float[Tensor, "*b 3"], Float[Tensor, "*b h w 3"]]:
    """World origins and unit directions of the rays through the pixel centres of square images."""
    directions = pixel_directions(cameras.K, resolution) @ cameras.c2w[..., None, :3, :3].mT
    return cameras.positions, torch.nn.functional.normalize(directions, dim=-1)


def fundamental(first: Cameras, second: Cameras, resolution: int) -> Float[Tensor, "v 3 3"]:
    """Matrices F with q^T F p = 0 for a point seen at p in the first and at q in the second of each pair of cameras.

    p and q are homogeneous pixels of square images, pixel centres at +0.5. F is not scaled, and zero where the two
    cameras share their centre. Source: Hartley and Zisserman, Multiple View Geometry, equation 9.1 onwards.
    """
    first, second = (Cameras(c.c2w.double(), c.K.double()) for c in (first, second))
    relative = second.w2c @ first.c2w
    x, y, z = relative[:, :3, 3].unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    to_first, to_second = (torch.linalg.inv(c.pixel_K(resolution)) for c in (first, second))
    return to_second.transpose(1, 2) @ cross @ relative[:, :3, :3] @ to_first


def epipolar_distance(F: Float[Tensor, "3 3"], p: Float[Tensor, "n 2"], q: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Symmetric epipolar distance in pixels: between points and the epipolar lines of their partners, the mean of both ways.

    Source: Yu et al. 2023, Long-Term Photometric Consistent Novel View Synthesis (symmetric epipolar distance).
    """
    p, q = (torch.cat([points.to(F), torch.ones_like(points[:, :1]).to(F)], dim=1) for points in (p, q))
    line_of_p, line_of_q = p @ F.T, q @ F
    off = (q * line_of_p).sum(1).abs()
    lengths = [line[:, :2].norm(dim=1).clamp(min=torch.finfo(F.dtype).tiny) for line in (line_of_p, line_of_q)]
    return (off / lengths[0] + off / lengths[1]) / 2
