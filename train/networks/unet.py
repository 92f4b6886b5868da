"""The multiview UNet: Stable Diffusion's UNet, whose self-attention runs over all views of a scene.

No layer is added to the network, so that its weights keep their names.
Source: SpinMeRound, section 3.2 and its released weights.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from manifests.errors import UserError
from train.networks.config import Stem, UNetShape

KINDS_OF_BLOCKS = 64
"""Largest number of block shapes that are compiled; each is compiled with gradients and without."""


def unet_config(shape: UNetShape, in_channels: int, out_channels: int) -> dict[str, Any]:
    """The config of diffusers' UNet2DConditionModel."""
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": shape.channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in shape.attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in shape.attention[::-1]),
        "layers_per_block": shape.blocks,
        # The name is a historical mistake of diffusers: it is the number of heads.
        "attention_head_dim": shape.heads,
        "cross_attention_dim": shape.context,
        "norm_num_groups": shape.groups,
        "sample_size": 8 * 2 ** (len(shape.channels) - 1),
    }


def build_unet(shape: UNetShape, in_channels: int, out_channels: int) -> nn.Module:
    """diffusers' UNet2DConditionModel with attention across views, with random weights."""
    # Importing diffusers takes seconds, which only building a network needs.
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel(**unet_config(shape, in_channels, out_channels))
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


def expand_channels(
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


def narrow_channels(weights: dict[str, Tensor], unet: nn.Module) -> dict[str, Tensor]:
    """Weights of a UNet with more channels at both ends, and of one without attention at some levels, for this one.

    The first channels are kept, which are those of the image. Attention layers of levels where the weights have none begin as
    they are built, but without effect.
    """
    own, narrowed = unet.state_dict(), dict(weights)
    if weights["conv_in.weight"].shape[1] > own["conv_in.weight"].shape[1]:
        narrowed["conv_in.weight"] = weights["conv_in.weight"][:, : own["conv_in.weight"].shape[1]]
        for name in ("conv_out.weight", "conv_out.bias"):
            narrowed[name] = weights[name][: len(own[name])]
    attended = {name.partition("attentions")[0] for name in weights if "attentions" in name}
    for name, weight in own.items():
        if "attentions" in name and name.partition("attentions")[0] not in attended:
            narrowed[name] = torch.zeros_like(weight) if ".proj_out." in name else weight
    return narrowed


class ViewAttention:
    """The processor of every attention layer of the UNet; holds no weights, so those of a 2D model are kept as they are.

    Self-attention of a joint layer joins the tokens of all views of a scene to one sequence: SpinMeRound's and CAT3D's 3D
    attention. Cross-attention stays per view.
    """

    def __init__(self, name: str, joint: bool):
        self.name, self.joint = name, joint

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "bv n d"],
        encoder_hidden_states: Float[Tensor, "bv m e"] | None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
        views: int = 1,
        banks: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "bv n d"]:
        """Attend; `views` of a scene follow each other, and `banks` holds further tokens (b k d) of each scene by layer.

        The number of views is an argument, not a state, so that it survives activation checkpointing (the released
        code loses it there and falls back to attention per view).
        """
        is_self = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if is_self and self.joint:
            q, k, v = (rearrange(x, "(b v) n d -> b (v n) d", v=views) for x in (q, k, v))
        if is_self and banks is not None and self.name in banks:
            bank = banks[self.name]
            # Projected once per scene and only then repeated for its views.
            further = (proj(bank).repeat_interleave(len(q) // len(bank), 0) for proj in (attn.to_k, attn.to_v))
            k, v = (torch.cat(pair, 1) for pair in zip((k, v), further, strict=True))
        out = _attend(q, k, v, attn.heads)
        if is_self and self.joint:
            out = rearrange(out, "b (v n) d -> (b v) n d", v=views)
        return attn.to_out[1](attn.to_out[0](out))


@contextmanager
def recorded_tokens(unet: nn.Module) -> Iterator[dict[str, Float[Tensor, "bv n d"]]]:
    """Record the inputs of the self-attention layers of a UNet while it runs: the banks of a reference network, by layer."""
    banks: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        banks[name] = args[0]

    layers = [(name, layer) for name, layer in unet.named_modules() if name.endswith("attn1")]
    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers]
    try:
        yield banks
    finally:
        for hook in hooks:
            hook.remove()


def _attend(
    q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"], v: Float[Tensor, "b m d"], heads: int
) -> Float[Tensor, "b n d"]:
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def set_view_attention(unet: Any, joint_from: int) -> None:
    """Give every attention layer its processor; levels from `joint_from` on (0 is the finest) attend across views."""
    levels = len(unet.config.block_out_channels)
    processors = {}
    for name in unet.attn_processors:
        level = levels - 1  # that of the middle block
        if (place := re.match(r"(down|up)_blocks\.(\d+)", name)) is not None:
            level = int(place[2]) if place[1] == "down" else levels - 1 - int(place[2])
        processors[name] = ViewAttention(name.removesuffix(".processor"), joint=level >= joint_from)
    unet.set_attn_processor(processors)
