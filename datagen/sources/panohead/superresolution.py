"""The super-resolution networks that EG3D's family of checkpoints names, and their form for one identity."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from datagen.sources.panohead.layers import Block, Noise, StyledBlock

CLAMP = 256.0


@dataclass(frozen=True)
class Variant:
    """The settings in which super-resolution networks differ."""

    channels: tuple[int, int] | None
    """Channels of the two blocks; None where the checkpoint declares them."""
    scale: int
    """Output over input resolution: 4 if both blocks go up, 2 if only the second does."""
    own_filter: bool = True
    """The checkpoint also holds a filter that nothing uses."""
    only_enlarge: bool = False
    """Inputs above the input resolution are taken as they are."""


# Source: EG3D, superresolution.py; the Tiny variant is 8XDC with its sizes as arguments.
VARIANTS = {
    "SuperresolutionHybrid8XDC": Variant((256, 128), scale=4, own_filter=False),
    "SuperresolutionHybrid8X": Variant((128, 64), scale=4),
    "SuperresolutionHybrid4X": Variant((128, 64), scale=2, only_enlarge=True),
    "SuperresolutionHybrid2X": Variant((128, 64), scale=2),
    "SuperresolutionHybridTinyDC": Variant(None, scale=4, own_filter=False),
}


def resize(image: Float[Tensor, "v c h w"], resolution: int, antialias: bool = True) -> Float[Tensor, "v c H W"]:
    """Bilinear resizing to a square image."""
    if image.shape[-1] == resolution:
        return image
    return F.interpolate(image, (resolution, resolution), mode="bilinear", align_corners=False, antialias=antialias)


class Upscaler(nn.Module):
    """A super-resolution network whose style is fixed: a plain CNN that all views share."""

    def __init__(self, blocks: list[Block], input_resolution: int, only_enlarge: bool, antialias: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.input_resolution, self.only_enlarge, self.antialias = input_resolution, only_enlarge, antialias

    def forward(self, rgb: Float[Tensor, "v 3 h w"], features: Float[Tensor, "v c h w"]) -> Float[Tensor, "v 3 H W"]:
        size = self.input_resolution
        if self.only_enlarge:
            size = max(size, features.shape[-1])
        x, image = resize(features, size, self.antialias), resize(rgb, size, self.antialias)
        first = self.blocks[0]
        assert isinstance(first, Block)
        x = x.to(first.to_rgb.weight.dtype, memory_format=torch.channels_last)
        for block in self.blocks:
            x, image = block(x, image)
        return image


class Superresolution(nn.Module):
    """From the rendered features and the raw image to the final image, styled by the last w alone."""

    def __init__(
        self, variant: str, resolution: int, w_dim: int, channels: tuple[int, int] | None, features: int, clamp: bool,
        antialias: bool,
    ):  # fmt: skip
        super().__init__()
        spec = VARIANTS[variant]
        declared = spec.channels or channels
        assert declared is not None, "a variant without sizes of its own, in a config that declares none"
        first, second = declared
        limit = CLAMP if clamp else None
        self.block0 = StyledBlock(features, first, w_dim, resolution // 2, 3, up=spec.scale == 4, clamp=limit)
        self.block1 = StyledBlock(first, second, w_dim, resolution, 3, clamp=limit)
        if spec.own_filter:
            self.register_buffer("resample_filter", torch.empty(4, 4))
        self.input_resolution = resolution // spec.scale
        self.only_enlarge, self.antialias = spec.only_enlarge, antialias

    def at(self, w: Float[Tensor, " s"], noise: Noise = "none") -> Upscaler:
        ws = w.expand(3, -1)
        blocks = [self.block0.at(ws, noise), self.block1.at(ws, noise)]
        upscaler = Upscaler(blocks, self.input_resolution, self.only_enlarge, self.antialias)
        return upscaler.to(memory_format=torch.channels_last)
