"""The multiview UNet: Stable Diffusion's, whose self-attention runs over all views and whose input holds rays too.

Latents of image and normals, ray map and mask go in; latents of image and normals come out. Nothing is added to the
network but channels of its first and last convolution. Source: SpinMeRound, section 3.2 and its released weights.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from manifests.errors import UserError
from train.networks.attention import set_view_attention
from train.networks.config import MASK, ModelShape, Stem, UNetShape

KINDS_OF_BLOCKS = 64
"""At most how many shapes of blocks are compiled; each is with gradients and without."""


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


def new_network(shape: ModelShape, latent_channels: int = 4) -> MultiviewUNet:
    """A network of this shape with random weights."""
    condition = 0 if shape.rays is None else shape.rays.channels + MASK
    return MultiviewUNet(shape.unet, latent_channels * (1 + shape.normals), condition)


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
