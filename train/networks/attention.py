"""Attention of a multiview UNet: self-attention over all views of a scene at once, per view, or with further tokens."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


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
