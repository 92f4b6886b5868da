"""Names of weights in the released checkpoints of DiffPortrait3D and DiffPortrait360."""

import re
from collections.abc import Collection
from typing import Any

import torch

from train.weights.convert import LDM_UNET, UNET, Names, names_in

REFERENCE, CONTROL = "control_model.", "pose_control_model."
"""Prefixes of the reference network, which the released code names after ControlNet's, and of the control part."""
UNUSED = "input_hint_block."
"""A stem of DiffPortrait3D's reference network that no code calls."""


def released_names(network: Any, names: Collection[str]) -> Names:
    """Names of the weights of a DiffPortraitNetwork to those in a file, for the weights that the file has.

    The output layers of the reference network are in no file: nothing reads what they compute.
    """
    found: Names = {}
    for part, prefix in (("unet", LDM_UNET), ("reference", REFERENCE)):
        module = network.get_submodule(part)
        plain = [
            name.removeprefix(prefix) for name in names if name.startswith(prefix) and "_motion_module." not in name
        ]
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
    return {here: CONTROL + own[int(position)] for here, position in translated.items()}


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
        if rest.endswith("pos_embed.pe"):
            continue
        released[here] = f"{LDM_UNET}{block}.temporal_transformer.{rest}"
    return released
