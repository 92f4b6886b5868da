"""Pixelwise metrics of generated pictures against the true ones, one number per picture.

All metrics take sRGB in [0, 1]; the loader's pictures are in [-1, 1] and are converted by `to_unit`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from manifests.errors import UserError

Measure = Callable[[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]
"""A metric with one number per picture, of generated and true pictures in [0, 1]."""

SIGMA, WINDOW = 1.5, 11
"""Standard deviation and width of SSIM's Gaussian window, in pixels. Source: Wang et al. 2004."""
SPLIT = 8
"""Pictures that are convolved at once, which bounds the memory."""


def to_unit(pictures: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 3 h w"]:
    """From [-1, 1] to [0, 1]."""
    return ((pictures + 1) / 2).clamp(0, 1)


def check_pictures(generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> None:
    """Raise UserError unless both have equally many pictures of one size in [0, 1]."""
    if generated.shape != target.shape:
        raise UserError(f"generated pictures are {tuple(generated.shape)}, true ones {tuple(target.shape)}")
    check_range(generated, "generated")
    check_range(target, "true")


def check_range(pictures: Float[Tensor, "n 3 h w"], name: str) -> None:
    """Raise UserError unless pictures are in [0, 1]."""
    if pictures.numel() and not (pictures.min() >= 0 and pictures.max() <= 1):
        low, high = pictures.min().item(), pictures.max().item()
        raise UserError(f"{name} pictures reach from {low:g} to {high:g}; metrics read 0 to 1, as (x + 1) / 2")


def l2(generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Mean squared error over the pixels and channels of each picture."""
    check_pictures(generated, target)
    return (generated - target).square().flatten(1).mean(1)


def psnr(generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each picture in dB, of a peak of 1; infinite where both are equal."""
    return -10 * l2(generated, target).log10()


def ssim(generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each picture, the mean over channels and over pixels whose whole window is inside.

    torchmetrics' own mean counts a mirrored border too, which at 64 pixels moves it by up to 0.03. Source: Wang et al.
    2004 (Gaussian window, sigma 1.5); equals scikit-image's with gaussian_weights and without sample covariance.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pictures(generated, target)
    if min(generated.shape[2:]) < WINDOW:
        raise UserError(f"SSIM has a window of {WINDOW} pixels, and pictures are {tuple(generated.shape[2:])}")
    border, parts = WINDOW // 2, []
    for a, b in zip(generated.split(SPLIT), target.split(SPLIT), strict=True):
        _, full = structural_similarity_index_measure(a, b, sigma=SIGMA, data_range=1.0, return_full_image=True)
        parts.append(full[..., border:-border, border:-border].flatten(1).mean(1))
    return torch.cat(parts)


def normal_error(
    generated: Float[Tensor, "n 3 h w"], target: Float[Tensor, "n 3 h w"], mask: Bool[Tensor, "n h w"]
) -> Float[Tensor, " n"]:
    """Mean angle in degrees between unit normals of one frame over the mask; NaN where that is empty.

    Vectors need not be exact: only a generated one shorter than half is grey, not a normal, and counts as 90 degrees,
    what a random one is off by.
    """
    cross = torch.linalg.cross(generated, target, dim=1).norm(dim=1)
    # Exact at small angles, where the arc cosine of float32 is off by up to 0.03 degrees.
    angle = torch.rad2deg(torch.atan2(cross, (generated * target).sum(1)))
    angle = torch.where(generated.norm(dim=1) < 0.5, 90.0, angle)
    return torch.where(mask, angle, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)
