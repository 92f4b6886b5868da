"""Official checkpoints to a folder of diffusers and transformers models, and back: every tensor of a model, or nothing."""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from manifests.errors import MissingFile, UserError
from train.networks.config import ModelShape
from train.networks.model import About, write_about
from train.networks.sd15 import sd15_unet_config
from train.weights.checkpoint_file import read_checkpoint
from train.weights.ldm_names import Names, shape_there
from train.weights.parts import (
    CONFIG,
    PARTS,
    UNET,
    Part,
    blank_model,
    names_in,
    read_config,
    settings,
    take,
    write_part,
)
from weights.tensors import save_tensors

CHANNELS = ((4, 4), (153, 8))
"""Into and out of the UNets of Stable Diffusion 1.5 (and Arc2Face) and of SpinMeRound."""

IGNORED = {
    "moving averages": r"model_ema\..+",
    "position numbers": r"(.+\.)?position_ids",
    "noise schedule": r"betas|logvar|lvlb_weights|posterior_\w+|\w*alphas_cumprod(_prev)?|(denoiser\.)?sigmas",
    "training losses": r"(first_stage_model\.)?loss\..+|loss_fn\..+",
    "CLIP's image half": r"vision_model\..+|(visual|text)_projection\.weight|logit_scale",
}
"""What official files hold beside the weights of models, by what it is: none of it decides what a model computes."""


@dataclass(frozen=True)
class Converted:
    """What was in a checkpoint."""

    parts: dict[str, int]
    """Tensors by the folder they were written to."""
    ignored: dict[str, int]
    """Tensors that were left out, by what they are."""


def convert(file: str | Path, dest: str | Path, like: str | Path | None = None) -> Converted:
    """Write the models of a checkpoint as `dest/unet`, `dest/vae` and `dest/text_encoder`, whichever it has.

    The whole of SpinMeRound is then a model that `spinset views` takes.

    Known are whole checkpoints of SpinMeRound and of Stable Diffusion 1.5, and a UNet, autoencoder or CLIP text model alone, by
    the names of LDM, diffusers or transformers (Arc2Face). Sizes are those released, or of the configs in the folder `like`.

    Raises:
        FileNotFoundError: there is no such file, or no config in `like`.
        ValueError: it is damaged; or a tensor is missing, unknown, of another shape or not finite: then nothing is written.
        ValueError: one of its models is in `dest` already.
    """
    tensors, dest = read_checkpoint(file), Path(dest)
    configs = {part.folder: read_config(Path(like) / part.folder) for part in PARTS} if like else {}
    if like and not any(configs.values()):
        raise MissingFile(f"{like} has no unet, vae or text_encoder folder with a {CONFIG}")
    found: list[tuple[Part, nn.Module, dict[str, Tensor]]] = []
    rest = set(tensors)
    for part in PARTS:
        given = configs.get(part.folder)
        model = blank_model(part, given or part.released)
        if not (names := names_in(part, model, tensors)):
            continue
        if part is UNET and not given:
            model = blank_model(part, sd15_unet_config(*_channels(tensors, names, file)))
        found.append((part, model, take(part, model, names, tensors, file)))
        rest -= set(names.values())
    if not found:
        raise UserError(
            f"{file} has no UNet, autoencoder or CLIP text model; its first tensor is {next(iter(tensors), None)}"
        )
    ignored = _ignored([name for name in tensors if name in rest], file)
    for part, _, _ in found:
        if (dest / part.folder).exists():
            raise UserError(f"{dest / part.folder} is there already; remove it, or give another folder")
    for part, model, weights in found:
        write_part(part, model, weights, dest)
    if not like and len(found) == len(PARTS) and settings(found[0][1])["in_channels"] == CHANNELS[1][0]:
        write_about(ModelShape(), About("what SpinMeRound's released weights know"), dest)
    return Converted({part.folder: len(weights) for part, _, weights in found}, ignored)


def export_ldm(folder: str | Path, file: str | Path) -> int:
    """Write the models of a folder as one safetensors file by the names of the released SpinMeRound; returns how many tensors.

    Raises:
        FileNotFoundError: a model is not in the folder.
        ValueError: a model is damaged, or not of Stable Diffusion 1.5's kind; or the file is there already.
    """
    folder, file = Path(folder), Path(file)
    if file.exists():
        raise UserError(f"{file} is there already; remove it, or give another name")
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        config = read_config(folder / part.folder)
        if config is None:
            # The official code would run with random weights in its place, and not say so.
            raise MissingFile(f"{folder / part.folder} has no {CONFIG}; a SpinMeRound checkpoint needs that model too")
        model, path = blank_model(part, config), folder / part.folder / part.weights
        theirs = read_checkpoint(path)
        names = names_in(part, model, theirs)
        _ignored([name for name in theirs if name not in set(names.values())], path)
        weights = take(part, model, names, theirs, path)
        for here, there in part.names(settings(model)).items():
            shape = shape_there(there, tuple(weights[here].shape))
            tensors[part.prefixes[0] + there] = weights[here].reshape(shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".unfinished")
    save_tensors(tensors, scratch)
    scratch.replace(file)
    return len(tensors)


def _channels(tensors: dict[str, Tensor], names: Names, file: str | Path) -> tuple[int, int]:
    """Into and out of the UNet of a file."""
    first, last = (tensors.get(names[name]) for name in ("conv_in.weight", "conv_out.weight"))
    if first is None or last is None or first.ndim != 4 or last.ndim != 4:
        # What is wrong with them is said when all weights are checked.
        return CHANNELS[0]
    channels = first.shape[1], last.shape[0]
    if channels not in CHANNELS:
        raise UserError(
            f"{file}: its UNet has {channels[0]} channels in and {channels[1]} out; Stable Diffusion 1.5 has 4 and 4, "
            "SpinMeRound 153 and 8"
        )
    return channels


def _ignored(names: list[str], file: str | Path) -> dict[str, int]:
    """How many tensors that are no weights there are of each sort."""
    sorts = [next((sort for sort, pattern in IGNORED.items() if re.fullmatch(pattern, name)), None) for name in names]
    if unknown := [name for name, sort in zip(names, sorts, strict=True) if sort is None]:
        raise UserError(f"{file} has {unknown[0]}, which no model known here has ({len(unknown)} such tensors)")
    return {sort: sorts.count(sort) for sort in IGNORED if sort in sorts}
