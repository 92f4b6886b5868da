"""The multiview UNet: Stable Diffusion's, whose self-attention runs over all views and whose input holds rays too.

Latents of image and normals, ray map and mask go in; latents of image and normals come out. Nothing is added to the
network but channels of its first and last convolution. Source: SpinMeRound, section 3.2 and its released weights.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from manifests.errors import UserError
from train.networks.attention import set_view_attention

MASK = 1
"""Channels of the mask: 1 where a view is to be made, 0 where it is given."""
KINDS_OF_BLOCKS = 64
"""At most how many shapes of blocks are compiled; each is with gradients and without."""


@dataclass(frozen=True)
class UNetShape:
    """The shape of the network; the default is that of Stable Diffusion 1.5."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of each level, the finest first."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which levels have attention; the middle always has."""
    blocks: int = 2
    """Residual blocks of each level on the way down, one more on the way up."""
    heads: int = 8
    context: int = 768
    """Width of the tokens that cross-attention reads."""
    joint_from: int = 1
    """Levels from this one on attend across views: 1 leaves the finest per view, which costs little and saves much."""
    groups: int = 32
    """Of group norm."""

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.attention):
            raise UserError(
                f"{len(self.channels)} levels of channels and {len(self.attention)} of attention; they pair"
            )
        for width in self.channels:
            if width % self.groups or width % self.heads:
                raise UserError(f"{width} channels do not divide into {self.groups} groups and {self.heads} heads")

    def diffusers(self, in_channels: int, out_channels: int) -> dict[str, Any]:
        """The config of diffusers' UNet2DConditionModel."""
        levels = len(self.channels)
        return {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "block_out_channels": self.channels,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in self.attention[::-1]),
            "layers_per_block": self.blocks,
            # The name is diffusers' old mistake: it counts heads.
            "attention_head_dim": self.heads,
            "cross_attention_dim": self.context,
            "norm_num_groups": self.groups,
            "sample_size": 8 * 2 ** (levels - 1),
        }


@dataclass(frozen=True)
class Stem:
    """How the first convolution takes on channels that a pre-trained one does not have."""

    pose_init: Literal["kaiming", "zero"] = "kaiming"
    """Weights of rays and mask: PyTorch's random ones (paper), or none, the gentler start."""
    scale: float = 1.0
    """Of the copied weights: with 0.5, image and normals together drive the network as the image alone did."""

    def __post_init__(self) -> None:
        if self.pose_init not in ("kaiming", "zero"):
            raise UserError(f"stem.pose_init is {self.pose_init!r}; it must be kaiming or zero")
        if self.scale <= 0:
            raise UserError(f"stem.scale is {self.scale:g}; it must be positive")


class MultiviewUNet(nn.Module):
    """diffusers' UNet2DConditionModel over scenes of views; its weights are those of `unet`, under the same names."""

    def __init__(self, shape: UNetShape, latents: int = 8, condition: int = 145):
        super().__init__()
        # Importing diffusers takes seconds, and only whoever builds a network needs it.
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        self.shape, self.latents, self.condition = shape, latents, condition
        self.unet = UNet2DConditionModel(**shape.diffusers(latents + condition, latents))
        set_view_attention(self.unet, shape.joint_from)

    def forward(
        self,
        x: Float[Tensor, "b v c h w"],
        condition: Float[Tensor, "b v k h w"],
        c_noise: Float[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        banks: dict[str, Tensor] | None = None,
        residuals: dict[str, Any] | None = None,
    ) -> Float[Tensor, "b v c h w"]:
        """The raw output for latents that are scaled already; one noise level and one context for all views of a scene.

        `banks` are further tokens for self-attention by layer (a reference network's), `residuals` what a ControlNet adds to
        skips and middle, by the names of diffusers; SpinMeRound has neither. A network of single pictures leaves the
        condition out.
        """
        views = x.shape[1]
        seen = torch.cat([x, condition], dim=2) if self.condition else x
        out: Any = self.unet(
            rearrange(seen, "b v c h w -> (b v) c h w"),
            repeat(c_noise, "b -> (b v)", v=views),
            repeat(context, "b n d -> (b v) n d", v=views),
            cross_attention_kwargs={"views": views, "banks": banks},
            return_dict=False,
            **(residuals or {}),
        )[0]
        return rearrange(out, "(b v) c h w -> b v c h w", v=views)

    def checkpoint_activations(self) -> None:
        """Compute activations again on the way back instead of keeping them: less memory, a third more time."""
        self.unet.enable_gradient_checkpointing()

    def compile_blocks(self) -> None:
        """Compile each residual and transformer block for itself: blocks of one shape share what was compiled.

        Shapes are fixed, for they are the same at every step; there are more of them than torch would compile unasked.
        """
        import torch._dynamo
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS_OF_BLOCKS)
        for module in self.unet.modules():
            if isinstance(module, ResnetBlock2D | Transformer2DModel):
                module.compile(dynamic=False)


def grow(
    weights: dict[str, Tensor], network: MultiviewUNet, stem: Stem, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Weights of a 2D model for the wider first and last convolution of a multiview one.

    Latents of normals begin with the weights of the image's, at both ends; rays and mask as `stem` says. All else, and
    convolutions that are as wide already, stay as they are. Source: SpinMeRound, section 3.2.

    Raises:
        ValueError: the convolutions are of no 2D model of 4 channels, nor of this one.
    """
    grown, unet = dict(weights), network.unet
    for name, bound in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        want = unet.get_parameter(name)
        have = weights.get(name, want.new_zeros(0))
        if have.shape == want.shape:
            continue
        copies = network.latents // have.shape[bound] if have.ndim == want.ndim else 0
        expected = [*want.shape[:bound], network.latents // max(copies, 1), *want.shape[bound + 1 :]]
        if not copies or list(have.shape) != expected:
            raise UserError(
                f"{name} is {tuple(have.shape)}, this model's is {tuple(want.shape)}; give a 4-channel UNet"
            )
        if bound:
            rest = torch.empty(len(want), want.shape[1] - network.latents, *want.shape[2:])
            if stem.pose_init == "zero":
                rest.zero_()
            else:
                limit = (want.shape[1] * want.shape[2] * want.shape[3]) ** -0.5
                rest.uniform_(-limit, limit, generator=generator)
            grown[name] = torch.cat([have * stem.scale] * copies + [rest.to(have)], 1)
        else:
            grown[name] = torch.cat([have] * copies)
    return grown
