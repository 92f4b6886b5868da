"""View-temporal attention: layers between the blocks of a UNet that attend along the views of a scene, pixel by pixel.

They are AnimateDiff's motion modules, with diffusers' names of weights. DiffPortrait3D and DiffPortrait360 place them
differently, and both behind the up-samplers, where diffusers' own UNet has them before. Sources: AnimateDiff (Guo et al. 2024),
and the released code of DiffPortrait3D and DiffPortrait360.
"""

from collections.abc import Iterator
from typing import Any, Literal

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Layout = Literal["diffportrait3d", "diffportrait360"]


class ViewTemporalLayer(AnimateDiffTransformer3D):
    """diffusers' layer, but groups are normalised within each view, as in AnimateDiff, and not over all views together."""

    def forward(self, hidden_states: Float[Tensor, "bv c h w"], num_frames: int = 1) -> Float[Tensor, "bv c h w"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Attend along the `num_frames` views of each scene, and add the result to the input."""
        h, w = hidden_states.shape[2:]
        x = rearrange(self.norm(hidden_states), "(b v) c h w -> (b h w) v c", v=num_frames)
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x)
        return hidden_states + rearrange(self.proj_out(x), "(b h w) v c -> (b v) c h w", h=h, w=w)


class ViewTemporal(ModelMixin, ConfigMixin):
    """The layers of a UNet with `blocks` residual blocks per level; the last projection of each starts at zero, so that they
    change nothing before they are trained.

    Layout diffportrait360 has a layer behind every residual block with its attention, in the decoder behind the up-sampler
    where there is one. Layout diffportrait3d has, besides, one behind every down-sampler, a second one behind every
    up-sampler, and one in the middle, which its released sampler uses in the unconditional branch of guidance only.
    """

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int = 2,
        layout: Layout = "diffportrait360",
        heads: int = 8,
        groups: int = 32,
    ):
        super().__init__()
        full, last = layout == "diffportrait3d", len(channels) - 1

        def layers(width: int, count: int) -> Any:
            level = nn.Module()
            level.motion_modules = nn.ModuleList(
                ViewTemporalLayer(
                    num_attention_heads=heads,
                    attention_head_dim=width // heads,
                    in_channels=width,
                    norm_num_groups=groups,
                    positional_embeddings="sinusoidal",
                    num_positional_embeddings=32 if full else 24,
                )
                for _ in range(count)
            )
            return level

        self.down_blocks = nn.ModuleList(
            layers(width, blocks + (full and level < last)) for level, width in enumerate(channels)
        )
        self.mid_block = layers(channels[-1], 1) if full else None
        self.up_blocks = nn.ModuleList(
            layers(width, blocks + 1 + (full and level < last)) for level, width in enumerate(reversed(channels))
        )
        self.views, self.middle = 1, False
        for layer in self.layers():
            nn.init.zeros_(layer.proj_out.weight)
            nn.init.zeros_(layer.proj_out.bias)

    def layers(self) -> Iterator[Any]:
        """All layers."""
        level: Any
        for level in (*self.down_blocks, self.mid_block, *self.up_blocks):
            if level is not None:
                yield from level.motion_modules

    def attach(self, unet: Any) -> None:
        """Make the blocks of a UNet call the layers behind them from now on."""
        block: Any
        own: Any
        for block, own in zip(unet.down_blocks, self.down_blocks, strict=True):
            parts = [*getattr(block, "attentions", block.resnets), *(block.downsamplers or [])]
            # The layout without layers behind the down-samplers has one layer less than the block has parts.
            for part, layer in zip(parts, own.motion_modules, strict=False):
                self._behind(part, [layer])
        if self.mid_block is not None:
            self._behind(unet.mid_block.attentions[0], list(self.mid_block.motion_modules), middle=True)
        for block, own in zip(unet.up_blocks, self.up_blocks, strict=True):
            parts = list(getattr(block, "attentions", block.resnets))
            parts[-1] = block.upsamplers[0] if block.upsamplers else parts[-1]
            for number, part in enumerate(parts):
                end = None if number == len(parts) - 1 else number + 1
                self._behind(part, list(own.motion_modules[number:end]))

    def _behind(self, part: nn.Module, layers: list[nn.Module], middle: bool = False) -> None:
        def call(_: nn.Module, __: Any, output: Any) -> Any:
            if middle and not self.middle:
                return output
            x = output[0] if isinstance(output, tuple) else output
            for layer in layers:
                x = layer(x, num_frames=self.views)
            return (x, *output[1:]) if isinstance(output, tuple) else x

        part.register_forward_hook(call)
