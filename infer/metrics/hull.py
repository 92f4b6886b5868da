"""Photo-consistency on the visual hull: whether views agree on the colour of the surface their masks carve out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from geometry.cameras import Cameras
from infer.metrics.pixels import check_range

FACING = 0.3
"""Cosine between a surface and the direction of a camera below which its picture is too slanted to be believed."""


def carve(
    masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int = 96
) -> tuple[Bool[Tensor, "g g g"], Bool[Tensor, "g g g"]]:
    """Cells of a grid over [-0.5, 0.5]^3 (x, y, z) that no mask denies, and cells that are in every picture.

    Source: Laurentini 1994, the visual hull.
    """
    points, resolution = _centres(grid, masks.device).reshape(-1, 3), masks.shape[-1]
    solid, framed = (torch.ones(grid**3, dtype=torch.bool, device=masks.device) for _ in range(2))
    for view, mask in enumerate(masks):
        x, y = cameras[[view]].project(points, resolution)[0, :, :2].floor().long().unbind(-1)
        inside = (x >= 0) & (x < resolution) & (y >= 0) & (y < resolution)
        framed &= inside
        solid[inside] &= mask[y[inside], x[inside]]
    return solid.reshape(grid, grid, grid), framed.reshape(grid, grid, grid)


def colour_spread(
    pictures: Float[Tensor, "v 3 h w"], masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int = 96
) -> Float[Tensor, " n"]:
    """Standard deviation of the colours (in [0, 1]) that views give to each point of the hull seen by two or more.

    Views count by how squarely they face the point. The hull is not the surface, so the mean is not 0 for true views
    either: compare with theirs. Pictures are square; only what all of them show is judged.
    """
    check_range(pictures, "generated")
    points, normals = _shell(*carve(masks, cameras, grid))
    if not len(points):
        return pictures.new_zeros(0)
    seen = cameras.project(points, pictures.shape[-1])
    ways = functional.normalize(cameras.positions[:, None] - points, dim=-1)
    facing = (ways * normals).sum(-1)
    inside = (seen[..., :2] > 0).all(-1) & (seen[..., :2] < pictures.shape[-1]).all(-1)
    weight = torch.where(inside & (facing > FACING) & _visible(seen, pictures.shape[-1], cameras, grid), facing, 0)
    at = (2 * seen[..., :2] / pictures.shape[-1] - 1)[:, :, None]
    colours = functional.grid_sample(pictures, at, padding_mode="border", align_corners=False)[..., 0]
    several = (weight > 0).sum(0) >= 2
    weight = weight[:, several] / weight[:, several].sum(0)
    colours = colours[..., several]
    mean = (weight[:, None] * colours).sum(0)
    return (weight[:, None] * (colours - mean).square()).sum(0).mean(0).sqrt()


def _centres(grid: int, device: torch.device) -> Float[Tensor, "g g g 3"]:
    ticks = (torch.arange(grid, device=device) + 0.5) / grid - 0.5
    return torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), dim=-1)


def _shell(
    solid: Bool[Tensor, "g g g"], framed: Bool[Tensor, "g g g"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Centres of solid cells in every picture next to a cell that a mask denied, and the hull's outward normals there."""
    around = functional.pad(solid[None, None].float(), (2,) * 6, mode="replicate")
    thinnest = -functional.max_pool3d(-around[..., 1:-1, 1:-1, 1:-1], 3, stride=1)[0, 0]
    shell = solid & framed & (thinnest == 0)
    outward = -torch.stack(torch.gradient(functional.avg_pool3d(around, 5, stride=1)[0, 0]), dim=-1)
    return _centres(len(solid), solid.device)[shell], functional.normalize(outward[shell], dim=-1)


def _visible(seen: Float[Tensor, "v n 3"], resolution: int, cameras: Cameras, grid: int) -> Bool[Tensor, "v n"]:
    """Which points of the shell lie in front in each view, by a depth buffer whose pixels are two cells wide."""
    visible = torch.zeros(seen.shape[:2], dtype=torch.bool, device=seen.device)
    for view, points in enumerate(seen):
        x, y, z = points.unbind(-1)
        cells = max(1, round(float(z.mean() / cameras.K[view, 0, 0]) * grid / 2))
        column, row = ((axis / resolution * cells).long().clamp(0, cells - 1) for axis in (x, y))
        pixel = row * cells + column
        nearest = z.new_full((cells * cells,), torch.inf).scatter_reduce(0, pixel, z, "amin")
        visible[view] = z <= nearest[pixel] + 3 / grid
    return visible
