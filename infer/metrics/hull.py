"""The visual hull of masks, and photo-consistency on it: whether views agree on the colours of the surface of the hull."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn import functional

from geometry.cameras import Cameras
from infer.metrics.pixels import check_range

MIN_FACING_COSINE = 0.3
"""Cosine between the hull's normal and the direction of a camera below which the picture is too slanted to be judged."""
CONTOUR_BLUR = 1.0
"""Standard deviation in pixels by which contours are smoothed; without it the staircase of their pixels shows on the hull."""


def hull_depths(
    masks: Bool[Tensor, "v h w"], cameras: Cameras, ticks: Float[Tensor, " g"]
) -> Float32[np.ndarray, "g g g"]:
    """How deep inside the visual hull the points (x, y, z) of a grid lie, in world units; negative outside.

    Beyond its frame a mask continues as it is at the frame; where no view looks is outside. Source: Laurentini 1994.
    """
    resolution, grid = masks.shape[-1], len(ticks)
    inside = torch.from_numpy(np.stack([_signed_distance(mask) for mask in masks.numpy()]))[:, None]
    plane = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), dim=-1).reshape(-1, 2)
    slabs = []
    for x in ticks:
        pixels = cameras.project(torch.cat([x.expand(len(plane), 1), plane], dim=-1), resolution)
        uv = 2 * pixels[..., :2] / resolution - 1
        pixel_size = pixels[..., 2] / (resolution * cameras.K[:, :1, 0])
        depth = functional.grid_sample(inside, uv[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0]
        frame = (1 - uv.abs()).amin(-1) * resolution / 2
        slabs.append(torch.minimum((depth * pixel_size).amin(0), (frame * pixel_size).amax(0)).reshape(grid, grid))
    return torch.stack(slabs).numpy()


def _signed_distance(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Pixels to the contour of a mask, positive inside; the border of the picture is no contour."""
    inner, outer = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (mask, ~mask)
    )
    return cv2.GaussianBlur(np.where(mask, inner - 0.5, 0.5 - outer), (0, 0), CONTOUR_BLUR)


def colour_spread(
    pictures: Float[Tensor, "v 3 h w"], masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int = 96
) -> Float[Tensor, " n"]:
    """Standard deviation of the colours that views give to each point of the hull's surface that two or more views see.

    `pictures` are square, in [0, 1]; only points that lie in all of them are judged. Views are weighted by the cosine at which
    they see a point. The hull is not the true surface, so true views have a mean above 0, too: compare with theirs.
    """
    check_range(pictures, "generated")
    points, normals = _shell(masks, cameras, grid)
    if not len(points):
        return pictures.new_zeros(0)
    pixels = cameras.project(points, pictures.shape[-1])
    towards = functional.normalize(cameras.positions[:, None] - points, dim=-1)
    cosine = (towards * normals).sum(-1)
    visible = (cosine > MIN_FACING_COSINE) & _in_front(pixels, pictures.shape[-1], cameras, grid)
    weight = torch.where(visible, cosine, 0)
    uv = (2 * pixels[..., :2] / pictures.shape[-1] - 1)[:, :, None]
    colours = functional.grid_sample(pictures, uv, padding_mode="border", align_corners=False)[..., 0]
    several = (weight > 0).sum(0) >= 2
    weight = weight[:, several] / weight[:, several].sum(0)
    colours = colours[..., several]
    mean = (weight[:, None] * colours).sum(0)
    return (weight[:, None] * (colours - mean).square()).sum(0).mean(0).sqrt()


def _shell(
    masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Centres of the cells of a grid over [-0.5, 0.5]^3 on the hull's surface and in every picture, and outward normals."""
    ticks = (torch.arange(grid) + 0.5) / grid - 0.5
    solid = torch.from_numpy(hull_depths(masks.cpu(), cameras.to("cpu"), ticks) > 0)
    around = functional.pad(solid[None, None].float(), (2,) * 6, mode="replicate")
    thinnest = -functional.max_pool3d(-around[..., 1:-1, 1:-1, 1:-1], 3, stride=1)[0, 0]
    shell = solid & (thinnest == 0)
    outward = -torch.stack(torch.gradient(functional.avg_pool3d(around, 5, stride=1)[0, 0]), dim=-1)[shell]
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), dim=-1)[shell].to(masks.device)
    pixels = cameras.project(points, masks.shape[-1])[..., :2]
    framed = ((pixels >= 0) & (pixels < masks.shape[-1])).all(-1).all(0)
    return points[framed], functional.normalize(outward.to(masks.device)[framed], dim=-1)


def _in_front(pixels: Float[Tensor, "v n 3"], resolution: int, cameras: Cameras, grid: int) -> Bool[Tensor, "v n"]:
    """Which points of the shell lie in front in each view, by a depth buffer whose pixels are two cells wide."""
    visible = torch.zeros(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
    for view, points in enumerate(pixels):
        x, y, z = points.unbind(-1)
        cells = max(1, round(float(z.mean() / cameras.K[view, 0, 0]) * grid / 2))
        column, row = ((axis / resolution * cells).long().clamp(0, cells - 1) for axis in (x, y))
        pixel = row * cells + column
        nearest = z.new_full((cells * cells,), torch.inf).scatter_reduce(0, pixel, z, "amin")
        visible[view] = z <= nearest[pixel] + 3 / grid
    return visible
