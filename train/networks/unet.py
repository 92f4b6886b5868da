"""The multiview UNet: Stable Diffusion's UNet, whose self-attention runs over all views of a scene.

No layer is added to the network, so that its weights keep their names.
Source: SpinMeRound, section 3.2 and its released weights.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from manifests.errors import UserError
from train.networks.attention import set_view_attention
from train.networks.config import Stem, UNetShape

KINDS_OF_BLOCKS = 64
"""Largest number of block shapes that are compiled; each is compiled with gradients and without."""


def build_unet(shape: UNetShape, in_channels: int, out_channels: int) -> nn.Module:
    """diffusers' UNet2DConditionModel with attention across views, with random weights."""
    # Importing diffusers takes seconds, which only building a network needs.
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**shape.diffusers(in_channels, out_channels))
    set_view_attention(unet, shape.joint_from)
    return unet


def run_unet(
    unet: nn.Module,
    x: Float[Tensor, "b v c h w"],
    c_noise: Float[Tensor, " b"],
    context: Float[Tensor, "b n d"],
    banks: dict[str, Tensor] | None = None,
    residuals: dict[str, Any] | None = None,
) -> Float[Tensor, "b v _ h w"]:
    """Apply a UNet to scenes, with one noise level and one context for all views of a scene.

    `banks` are further tokens (b, k, d) for self-attention by layer, such as those of a reference network; `residuals` is what
    a ControlNet adds to the skip connections and the middle block, by the names of diffusers.
    """
    views = x.shape[1]
    out: Any = unet(
        rearrange(x, "b v c h w -> (b v) c h w"),
        repeat(c_noise, "b -> (b v)", v=views),
        repeat(context, "b n d -> (b v) n d", v=views),
        cross_attention_kwargs={"views": views, "banks": banks},
        return_dict=False,
        **(residuals or {}),
    )[0]
    return rearrange(out, "(b v) c h w -> b v c h w", v=views)


def checkpoint_activations(network: nn.Module) -> None:
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    for module in network.children():
        if hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]


def compile_blocks(network: nn.Module) -> None:
    """Compile each residual and transformer block for itself: blocks of one shape share the compiled code.

    Shapes are fixed, for they are the same at every step; there are more of them than torch would compile by default.
    """
    import torch._dynamo
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS_OF_BLOCKS)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D | Transformer2DModel):
            module.compile(dynamic=False)


def grow(
    weights: dict[str, Tensor],
    unet: nn.Module,
    latents: int,
    stem: Stem,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Weights of a 2D model, extended to the wider first and last convolution of a multiview one with so many latent channels.

    Latents of further members (normals) start from the weights of the image's, at both ends; condition channels as `stem` says.
    All other weights, and convolutions that are as wide already, stay as they are. Source: SpinMeRound, section 3.2.

    Raises:
        ValueError: the convolutions are of no 2D model of 4 channels, nor of this one.
    """
    grown = dict(weights)
    for name, bound in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        want = unet.get_parameter(name)
        have = weights.get(name, want.new_zeros(0))
        if have.shape == want.shape:
            continue
        copies = latents // have.shape[bound] if have.ndim == want.ndim else 0
        expected = [*want.shape[:bound], latents // max(copies, 1), *want.shape[bound + 1 :]]
        if not copies or list(have.shape) != expected:
            raise UserError(
                f"{name} is {tuple(have.shape)}, this model's is {tuple(want.shape)}; give a 4-channel UNet"
            )
        if bound:
            rest = torch.empty(len(want), want.shape[1] - latents, *want.shape[2:])
            if stem.pose_init == "zero":
                rest.zero_()
            else:
                limit = (want.shape[1] * want.shape[2] * want.shape[3]) ** -0.5
                rest.uniform_(-limit, limit, generator=generator)
            grown[name] = torch.cat([have * stem.scale] * copies + [rest.to(have)], 1)
        else:
            grown[name] = torch.cat([have] * copies)
    return grown
