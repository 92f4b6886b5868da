"""How well a generator shows given pictures: the losses of inversion, which are differentiable in all of its inputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.identity import Synthesis
from datagen.sources.panohead.superresolution import resize
from geometry.cameras import Cameras

Perceptual = Callable[[Float[Tensor, "v 3 h w"], Float[Tensor, "v 3 h w"]], Float[Tensor, " v"]]
"""A differentiable distance of pictures in [-1, 1], such as LPIPS."""
PERCEPTUAL_SIZE = 256
"""Pixels of the pictures that the perceptual distance compares. Source: StyleGAN2, appendix D."""
SPREAD, PRICE = 0.3, 0.03
"""Radians and world units that a camera is moved by an offset of 1, and the loss that this costs."""
COARSEST = 8
"""Pixels of the smallest pictures that are compared."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one person over white, with their cameras, at the resolution of a generator."""

    rgb: Float[Tensor, "v 3 h w"]
    """sRGB in [-1, 1]."""
    alpha: Float[Tensor, "v 1 h w"]
    cameras: Cameras

    def __len__(self) -> int:
        return len(self.rgb)

    def resized(self, resolution: int) -> "Pictures":
        """The same pictures, square with another number of pixels."""
        return Pictures(resize(self.rgb, resolution), resize(self.alpha, resolution), self.cameras)

    def to(self, device: torch.device | str) -> "Pictures":
        return Pictures(self.rgb.to(device), self.alpha.to(device), self.cameras.to(device))


def moved(cameras: Cameras, offsets: Float[Tensor, "v 6"]) -> Cameras:
    """Cameras turned about the centre of the head by rotation vectors, then moved by translations; offsets are in SPREAD."""
    x, y, z = (SPREAD * offsets[:, :3]).unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).unflatten(1, (3, 3))
    turn = torch.linalg.matrix_exp(cross) @ cameras.c2w[:, :3]
    c2w = torch.cat([turn[:, :, :3], turn[:, :, 3:] + SPREAD * offsets[:, 3:, None]], dim=2)
    return Cameras(torch.cat([c2w, cameras.c2w[:, 3:]], dim=1), cameras.K)


def render(generator: Generator, ws: Float[Tensor, "1 l s"], cameras: Cameras) -> Synthesis:
    """Views of one identity, with gradients."""
    return generator.identity(ws).views(cameras)


def over_white(seen: Synthesis) -> Float[Tensor, "v 3 h w"]:
    """The head of each view over white, as the pictures are, sRGB in [-1, 1]."""
    alpha = resize(seen.image_mask.clamp(0, 1), seen.image.shape[-1])
    return alpha * seen.image.clamp(-1, 1) + 1 - alpha


def loss(
    seen: Synthesis, pictures: Pictures, offsets: Float[Tensor, "v 6"], perceptual: Perceptual | None = None
) -> Float[Tensor, ""]:
    """The sum of what differs: the head over white, its outline, and the perceptual distance where there is one.

    The head is compared at all sizes from that of the pictures to COARSEST: in small pictures a face that is a little beside
    its place still overlaps with it, which guides a fit that begins far away. Cameras that are moved cost something, so that
    they move as far as it pays.
    """
    outline = seen.image_mask - resize(pictures.alpha, seen.image_mask.shape[-1])
    shown, wanted = over_white(seen), pictures.rgb
    total = outline.square().mean() + PRICE * offsets.square().sum(dim=1).mean() + (shown - wanted).square().mean()
    if perceptual is not None:
        size = min(PERCEPTUAL_SIZE, wanted.shape[-1])
        total = total + perceptual(resize(shown, size), resize(wanted, size)).mean()
    while shown.shape[-1] > COARSEST:
        shown, wanted = F.avg_pool2d(shown, 2), F.avg_pool2d(wanted, 2)
        total = total + (shown - wanted).square().mean()
    return total


def psnr(seen: Synthesis, pictures: Pictures) -> Float[Tensor, " v"]:
    """Peak signal-to-noise ratio in dB of each view over white."""
    error = ((over_white(seen) - pictures.rgb) / 2).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp(min=1e-12))
