"""Names of weights in the released checkpoints of DiffPortrait3D and DiffPortrait360, and files in their form."""

import re
from collections.abc import Collection, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import UserError
from train.families.diffportrait.config import DiffPortraitConfig
from train.networks.config import WEIGHTS, About, ModelConfig, UNetShape
from train.weights.names import LDM_UNET, UNET, Names, Part, names_in, take
from weights.files import save_tensors

REFERENCE, CONTROL, TEMPORAL = "control_model.", "pose_control_model.", "_motion_module."
"""Marks of the reference network, which the released code names after ControlNet's, of the control part, and of the layers
between views."""
UNREAD = {"conv_norm_out": "out.0", "conv_out": "out.2"}
"""Layers of a UNet that the released reference networks lack, because nothing reads what they compute."""


def is_steering(name: str) -> bool:
    """Whether a name in a file belongs to a part that steers the UNet."""
    return name.startswith((REFERENCE, CONTROL)) or TEMPORAL in name


def steering_parts(
    tensors: Mapping[str, Tensor], unet: Any, factor: int, file: str | Path
) -> tuple[DiffPortraitConfig, list[tuple[Part, nn.Module, dict[str, Tensor], Names]]]:
    """The config of a released checkpoint, and its parts besides the UNet, with their weights and names.

    Raises:
        UserError: a tensor is lacking, of another shape or not finite.
    """
    from train.families.diffportrait.model import DiffPortraitNetwork

    layout = None
    if any(TEMPORAL in name for name in tensors):
        middle = any(name.startswith(f"{LDM_UNET}middle_block{TEMPORAL}") for name in tensors)
        layout = "diffportrait3d" if middle else "diffportrait360"
    own = unet.config
    shape = UNetShape(
        tuple(own.block_out_channels),
        tuple(kind == "CrossAttnDownBlock2D" for kind in own.down_block_types),
        own.layers_per_block,
        own.attention_head_dim,
        own.cross_attention_dim,
        joint_from=len(own.block_out_channels),
        groups=own.norm_num_groups,
    )
    config = DiffPortraitConfig(shape, references=1 + (layout == "diffportrait360"), temporal=layout)
    with torch.device("meta"):
        network = DiffPortraitNetwork(config, own.in_channels, factor)
    names, found = released_names(network, tensors), []
    for layer, there in UNREAD.items():
        for kind in ("weight", "bias"):
            names[f"reference.{layer}.{kind}"] = f"{LDM_UNET}{there}.{kind}"
    for folder in config.parts[1:]:
        part, module = Part(folder, WEIGHTS, {}), network.get_submodule(folder)
        of_part = {here.removeprefix(f"{folder}."): there for here, there in names.items() if here.startswith(folder)}
        found.append((part, module, take(part, module, of_part, tensors, file), of_part))
    return config, found


def about_released(config: DiffPortraitConfig) -> About:
    """The description of a released model, whose references are those of DiffPortrait360's training code."""
    system = {"diffportrait3d": "DiffPortrait3D", None: "DiffPortrait360's back generator"}
    name = system.get(config.temporal, "DiffPortrait360")
    turns = ((0.0, 40.0), (145.0, 180.0))[: config.references] if config.temporal != "diffportrait3d" else ()
    return About(f"what the released weights of {name} know", 512, (config.references,), identity=False, turns=turns)


def write_released(config: ModelConfig, folder: Path, file: Path) -> int:
    """Write the parts of a model as one safetensors file under the released names; returns the number of its tensors.

    The autoencoder and the text encoder are Stable Diffusion's own and are left out, as is what the released reference network
    lacks.

    Raises:
        UserError: it is no model of this family, or was trained on rays, or there is such a file.
    """
    from train.families import load_model

    if not isinstance(config, DiffPortraitConfig) or config.control == "rays":
        raise UserError(
            f"{folder} has no form in which a system was released; spinset convert writes those of DiffPortrait"
        )
    if file.exists():
        raise UserError(f"{file} is there already; remove it, or give another file")
    network = load_model(folder).network
    names = released_names(network, ldm_names(config.unet) | temporal_released(network))
    weights = {there: tensor for here, tensor in network.state_dict().items() if (there := names.get(here))}
    save_tensors(weights, file)
    return len(weights)


def temporal_released(network: Any) -> set[str]:
    """The released names of the layers between the views of a network."""
    return set(temporal_names(network.temporal).values()) if hasattr(network, "temporal") else set()


def ldm_names(shape: UNetShape) -> set[str]:
    """Names of latent diffusion that the weights of a UNet, its reference network and its control part can have."""
    levels, blocks = len(shape.channels), shape.blocks + 1
    resnet = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
    block = "transformer_blocks.0."
    attention = [f"{block}attn{n}.{layer}" for n in (1, 2) for layer in ("to_q", "to_k", "to_v", "to_out.0")]
    attention += [f"{block}norm{n}" for n in (1, 2, 3)] + [f"{block}ff.net.0.proj", f"{block}ff.net.2"]
    layers = [*resnet, "norm", "proj_in", "proj_out", *attention, "op", "conv"]
    places = [
        f"{side}.{i}.{j}" for side, i, j in product(("input_blocks", "output_blocks"), range(levels * blocks), range(3))
    ]
    names = [f"{place}.{layer}" for place in [*places, *(f"middle_block.{i}" for i in range(3))] for layer in layers]
    names += ["input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2"]
    own = [f"input_hint_block.{2 * i}" for i in range(8)] + ["middle_block_out.0"]
    own += [f"zero_convs.{i}.0" for i in range(levels * blocks)]
    prefixed = [f"{prefix}{name}" for prefix in (LDM_UNET, REFERENCE, CONTROL) for name in names]
    prefixed += [f"{CONTROL}{name}" for name in own]
    unread = tuple(f"{REFERENCE}{layer}" for layer in UNREAD.values())
    return {f"{name}.{kind}" for name in prefixed if name not in unread for kind in ("weight", "bias")}


def released_names(network: Any, names: Collection[str]) -> Names:
    """Names of the weights of a DiffPortraitNetwork to those in a file, for the weights that the file has.

    The output layers of the reference network are in no file: nothing reads what they compute.
    """
    found: Names = {}
    for part, prefix in (("unet", LDM_UNET), ("reference", REFERENCE)):
        if not hasattr(network, part):
            continue
        module = network.get_submodule(part)
        plain = [name.removeprefix(prefix) for name in names if name.startswith(prefix) and TEMPORAL not in name]
        for here, there in names_in(UNET, module, plain).items():
            found[f"{part}.{here}"] = prefix + there
    if hasattr(network, "control"):
        found |= {f"control.{here}": there for here, there in control_names(network.control, names).items()}
    if hasattr(network, "temporal"):
        known = set(names)
        pairs = {f"temporal.{here}": there for here, there in temporal_names(network.temporal).items()}
        found |= {here: there for here, there in pairs.items() if there in known}
    return found


def control_names(control: Any, names: Collection[str]) -> Names:
    """Names of the weights of a ControlNetModel to those in a file; diffusers translates them."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    own = [name.removeprefix(CONTROL) for name in names if name.startswith(CONTROL)]
    # The function renames tensors; each tensor here is the position of its name.
    positions = {name: torch.full((1, 1, 1, 1), i) for i, name in enumerate(own)}
    if not own:
        return {}
    translated = convert_controlnet_checkpoint(positions, dict(control.config))
    # It gives None for a tensor that is not there.
    return {here: CONTROL + own[int(position)] for here, position in translated.items() if position is not None}


def temporal_names(temporal: Any) -> Names:
    """Names of the weights of a ViewTemporal to the released ones.

    A released layer is numbered by the block of the UNet that it follows; the second layer behind an up-sampler is its `.1`.
    """
    parts, released = temporal.config.blocks + (temporal.config.layout == "diffportrait3d"), {}
    for here in temporal.state_dict():
        side, level, layer, rest = re.fullmatch(
            r"(down|mid|up)_blocks?\.?(\d*)\.motion_modules\.(\d)\.(.+)", here
        ).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if side == "mid":
            block = "middle_block_motion_module.0"
        elif side == "down":
            block = f"input_blocks_motion_module.{parts * int(level) + int(layer)}.0"
        else:
            blocks = temporal.config.blocks + 1
            number, second = min(int(layer), blocks - 1), int(int(layer) == blocks)
            block = f"output_blocks_motion_module.{blocks * int(level) + number}.{second}"
        rest = re.sub(r"\.attn(\d)\.", lambda found: f".attention_blocks.{int(found[1]) - 1}.", rest)
        rest = rest.replace(".norm3.", ".ff_norm.")
        rest = re.sub(r"\.norm(\d)\.", lambda found: f".norms.{int(found[1]) - 1}.", rest)
        # The positions of both attentions are the same numbers.
        rest = rest.replace(".pos_embed.pe", ".attention_blocks.0.pos_encoder.pe")
        released[here] = f"{LDM_UNET}{block}.temporal_transformer.{rest}"
    return released
