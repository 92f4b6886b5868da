"""Converts official checkpoints to folders of diffusers and transformers models; a tensor too many or too few is an error."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from manifests.errors import MissingFile, UserError
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import About, ModelConfig, write_card
from train.weights.checkpoint_file import read_checkpoint
from train.weights.diffportrait import REFERENCE, about_released, is_steering, steering_parts
from train.weights.names import (
    CONFIG,
    PARTS,
    TEXT,
    UNET,
    VAE,
    Names,
    Part,
    blank_model,
    config_of,
    names_in,
    read_config,
    sd15_unet_config,
    take,
    write_part,
)

CHANNELS = ((4, 4), (153, 8))
"""Input and output channels of the UNets of Stable Diffusion 1.5 (and Arc2Face) and of SpinMeRound."""
IGNORED = {
    "moving averages": r"model_ema\..+",
    "position numbers": r"(.+\.)?position_ids",
    "noise schedule": r"betas|logvar|lvlb_weights|posterior_\w+|\w*alphas_cumprod(_prev)?|(denoiser\.)?sigmas",
    "training losses": r"(first_stage_model\.)?loss\..+|loss_fn\..+",
    "view positions": r".+_motion_module\..+\.attention_blocks\.1\.pos_encoder\.pe",
    "a stem that nothing calls": r"control_model\.input_hint_block\..+",
    "CLIP's image half": r"vision_model\..+|(visual|text)_projection\.weight|logit_scale",
}
"""Patterns, by kind, of the tensors in official files that do not decide what a model computes."""


@dataclass(frozen=True)
class Converted:
    """Contents of a checkpoint."""

    parts: dict[str, int]
    """Number of tensors by the folder they were written to."""
    ignored: dict[str, int]
    """Number of tensors that were left out, by kind."""


def convert(file: str | Path, dest: str | Path, like: str | Path | None = None) -> Converted:
    """Write the models of a checkpoint as `dest/unet`, `dest/vae` and `dest/text_encoder`, as far as it has them.

    A whole checkpoint of SpinMeRound or DiffPortrait becomes a model that `spinset views` reads. Other files may be whole
    checkpoints of Stable Diffusion 1.5, and a UNet, autoencoder or CLIP text model alone, by the names of LDM, diffusers or
    transformers (Arc2Face). Sizes are the released ones, or those of the configs in the folder `like`.

    Raises:
        MissingFile: there is no such file, or no config in `like`.
        UserError: the file is damaged; or a tensor is lacking, unknown, of another shape or not finite; or `dest` already has
            one of the models. Nothing is written then.
    """
    tensors, dest = read_checkpoint(file), Path(dest)
    configs = {part.folder: read_config(Path(like) / part.folder) for part in PARTS} if like else {}
    if like and not any(configs.values()):
        raise MissingFile(f"{like} has no unet, vae or text_encoder folder with a {CONFIG}")
    found: list[tuple[Part, nn.Module, dict[str, Tensor]]] = []
    unused, plain = set(tensors), [name for name in tensors if not is_steering(name)]
    for part in PARTS:
        given = configs.get(part.folder)
        model = blank_model(part, given or part.released)
        if not (names := names_in(part, model, plain)):
            continue
        if part is UNET and not given:
            model = blank_model(part, sd15_unet_config(*_channels(tensors, names, file)))
        found.append((part, model, take(part, model, names, tensors, file)))
        unused -= set(names.values())
    if not found:
        raise UserError(
            f"{file} has no UNet, autoencoder or CLIP text model; its first tensor is {next(iter(tensors), None)}"
        )
    config: ModelConfig | None = None
    about = About("what SpinMeRound's released weights know")
    folders = {part.folder: module for part, module, _ in found}
    if not like and len(found) == len(PARTS) and config_of(found[0][1])["in_channels"] == CHANNELS[1][0]:
        config = SpinMeRoundConfig()
    elif any(name.startswith(REFERENCE) for name in tensors):
        if not {UNET.folder, VAE.folder} <= set(folders):
            raise UserError(
                f"{file} has a reference network without its UNet and autoencoder; give the whole checkpoint"
            )
        factor = 2 ** (len(config_of(folders[VAE.folder])["block_out_channels"]) - 1)
        config, steering = steering_parts(tensors, folders[UNET.folder], factor, file)
        config, about = replace(config, prompt=TEXT.folder in folders), about_released(config)
        for part, module, weights, names in steering:
            found.append((part, module, weights))
            unused -= set(names.values())
    ignored = _ignored([name for name in tensors if name in unused], file)
    for part, _, _ in found:
        if (dest / part.folder).exists():
            raise UserError(f"{dest / part.folder} is there already; remove it, or give another folder")
    for part, model, weights in found:
        write_part(part, model, weights, dest)
    if config is not None:
        write_card(config, about, dest)
    return Converted({part.folder: len(weights) for part, _, weights in found}, ignored)


def _channels(tensors: Mapping[str, Tensor], names: Names, file: str | Path) -> tuple[int, int]:
    """Input and output channels of the UNet of a file."""
    first, last = (tensors.get(names.get(name, "")) for name in ("conv_in.weight", "conv_out.weight"))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return CHANNELS[0]  # `take` names what is wrong with them
    channels = first.shape[1], last.shape[0]
    if channels not in CHANNELS:
        raise UserError(
            f"{file}: its UNet has {channels[0]} channels in and {channels[1]} out; Stable Diffusion 1.5 has 4 and 4, "
            "SpinMeRound 153 and 8"
        )
    return channels


def _ignored(names: list[str], file: str | Path) -> dict[str, int]:
    """Count the tensors that are no weights, by kind; raises UserError if one is of no known kind."""
    kinds = [next((kind for kind, pattern in IGNORED.items() if re.fullmatch(pattern, name)), None) for name in names]
    if unknown := [name for name, kind in zip(names, kinds, strict=True) if kind is None]:
        raise UserError(f"{file} has {unknown[0]}, which no model known here has ({len(unknown)} such tensors)")
    return {kind: kinds.count(kind) for kind in IGNORED if kind in kinds}
