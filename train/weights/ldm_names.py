"""What weights are called in official checkpoints (LDM, sgm) and in diffusers and transformers, derived from the structure.

Each function gives {name here: name there} for a model of a config, whatever its depth; for the way back, swap the two. Names
there are without the prefix that a whole checkpoint puts before a model's. Source: the names of CompVis' latent diffusion.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

Names = dict[str, str]
Config = Mapping[str, Any]

# The parts of a residual block of the UNet, of the autoencoder, and of the autoencoder's attention.
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What diffusers itself once called the layers, and still does in the files of Stable Diffusion 1.5."""

# A transformer's layers have one name in both worlds; queries, keys and values have no bias.
TRANSFORMER_LAYERS = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
TRANSFORMER_PROJECTIONS = tuple(f"attn{n}.to_{x}.weight" for n in (1, 2) for x in "qkv")

CLIP_LAYERS = (
    *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)

# In LDM the autoencoder attends through 1x1 convolutions, which are matrices in diffusers.
CONV_THERE = re.compile(r"(.+\.)?(encoder|decoder)\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


def unet_names(config: Config) -> Names:
    """Of a UNet2DConditionModel of Stable Diffusion 1.5's kind, of any widths, layers and levels with attention."""
    widths, layers = tuple(config["block_out_channels"]), config["layers_per_block"]
    last = len(widths) - 1
    depth = config.get("transformer_layers_per_block", 1)
    names = _weights(
        {
            "time_embedding.linear_1": "time_embed.0",
            "time_embedding.linear_2": "time_embed.2",
            "conv_in": "input_blocks.0.0",
            "conv_norm_out": "out.0",
            "conv_out": "out.2",
        }
    )
    # There, blocks are counted through all levels: on the way down each level has a downsampler of its own number (the
    # last has none) and number 0 is the first convolution; on the way up the upsampler sits in its level's last block.
    for level, kind in enumerate(config["down_block_types"]):
        here, first = f"down_blocks.{level}", 1 + level * (layers + 1)
        for layer in range(layers):
            there = f"input_blocks.{first + layer}"
            wider = layer == 0 and widths[max(level - 1, 0)] != widths[level]
            names |= _block(f"{here}.resnets.{layer}", f"{there}.0", UNET_RESNET, wider)
            if _attends(kind):
                names |= _transformer(f"{here}.attentions.{layer}", f"{there}.1", depth)
        if level != last:
            names |= _weights({f"{here}.downsamplers.0.conv": f"input_blocks.{first + layers}.0.op"})

    names |= _block("mid_block.resnets.0", "middle_block.0", UNET_RESNET, False)
    names |= _transformer("mid_block.attentions.0", "middle_block.1", depth)
    names |= _block("mid_block.resnets.1", "middle_block.2", UNET_RESNET, False)

    up = widths[::-1]
    for level, kind in enumerate(config["up_block_types"]):
        here, first = f"up_blocks.{level}", level * (layers + 1)
        for layer in range(layers + 1):
            there = f"output_blocks.{first + layer}"
            below = up[max(level - 1, 0)] if layer == 0 else up[level]
            skip = up[min(level + 1, last)] if layer == layers else up[level]
            names |= _block(f"{here}.resnets.{layer}", f"{there}.0", UNET_RESNET, below + skip != up[level])
            if _attends(kind):
                names |= _transformer(f"{here}.attentions.{layer}", f"{there}.1", depth)
        if level != last:
            place = 2 if _attends(kind) else 1
            names |= _weights({f"{here}.upsamplers.0.conv": f"output_blocks.{first + layers}.{place}.conv"})
    return names


def vae_names(config: Config) -> Names:
    """Of an AutoencoderKL of any widths and layers; some have two further axes there, see `shape_there`."""
    widths, layers = tuple(config["block_out_channels"]), config["layers_per_block"]
    last = len(widths) - 1
    names = _weights({"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})
    for half in ("encoder", "decoder"):
        names |= _weights(
            {
                f"{half}.conv_in": f"{half}.conv_in",
                f"{half}.conv_norm_out": f"{half}.norm_out",
                f"{half}.conv_out": f"{half}.conv_out",
            }
        )
        for n in (0, 1):
            names |= _block(f"{half}.mid_block.resnets.{n}", f"{half}.mid.block_{n + 1}", VAE_RESNET, False)
        names |= _block(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION, False)

    for level, (before, width) in enumerate(pairwise((widths[0], *widths))):
        here, there = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for layer in range(layers):
            wider = layer == 0 and before != width
            names |= _block(f"{here}.resnets.{layer}", f"{there}.block.{layer}", VAE_RESNET, wider)
        if level != last:
            names |= _weights({f"{here}.downsamplers.0.conv": f"{there}.downsample.conv"})
    # The decoder's levels are numbered by resolution there, as the encoder's, and in order of use here.
    for level, (before, width) in enumerate(pairwise((widths[-1], *widths[::-1]))):
        here, there = f"decoder.up_blocks.{level}", f"decoder.up.{last - level}"
        for layer in range(layers + 1):
            narrower = layer == 0 and before != width
            names |= _block(f"{here}.resnets.{layer}", f"{there}.block.{layer}", VAE_RESNET, narrower)
        if level != last:
            names |= _weights({f"{here}.upsamplers.0.conv": f"{there}.upsample.conv"})
    return names


def old_vae_names(config: Config) -> Names:
    """Of an AutoencoderKL, in files that diffusers wrote before it renamed the layers of attention."""
    old = {f".attentions.0.{new}.": f".attentions.0.{old}." for new, old in OLD_VAE_ATTENTION.items()}
    names = {name: name for name in vae_names(config)}
    for new, before in old.items():
        names = {name: there.replace(new, before) for name, there in names.items()}
    return names


def text_names(config: Config) -> Names:
    """Of a CLIPTextModel: its names since transformers 5, and those before, which official checkpoints have."""
    layers = [f"encoder.layers.{n}.{layer}" for n in range(config["num_hidden_layers"]) for layer in CLIP_LAYERS]
    tables = [f"embeddings.{table}_embedding.weight" for table in ("token", "position")]
    names = [*tables, *_parameters([*layers, "final_layer_norm"])]
    return {name: f"text_model.{name}" for name in names}


def shape_there(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a weight has under this name, with or without prefix, if it has `shape` here; reshape either way."""
    return (*shape, 1, 1) if CONV_THERE.fullmatch(name) else shape


def _attends(kind: str) -> bool:
    return kind.startswith("CrossAttn")


def _block(here: str, there: str, layers: Mapping[str, str], shortcut: bool) -> Names:
    """A block of some layers; it has a shortcut where its width changes."""
    return _weights({f"{here}.{a}": f"{there}.{b}" for a, b in layers.items() if shortcut or a != "conv_shortcut"})


def _transformer(here: str, there: str, depth: int) -> Names:
    inner = [*_parameters(TRANSFORMER_LAYERS), *TRANSFORMER_PROJECTIONS]
    every = [f"transformer_blocks.{n}.{name}" for n in range(depth) for name in inner]
    return {f"{here}.{x}": f"{there}.{x}" for x in [*_parameters(("norm", "proj_in", "proj_out")), *every]}


def _weights(modules: Mapping[str, str]) -> Names:
    return dict(zip(_parameters(modules), _parameters(modules.values()), strict=True))


def _parameters(modules: Iterable[str]) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
