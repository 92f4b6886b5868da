"""Converts official checkpoints to folders of diffusers and transformers models; a tensor too many or too few is an error.

Names of latent diffusion (Rombach et al. 2022), which Stable Diffusion and SpinMeRound use, are translated by the functions of
diffusers for checkpoints of a single file.
"""

import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import MissingFile, UserError
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import About, UNetShape, write_card
from train.networks.unet import unet_config
from train.weights.checkpoint_file import one_line, read_checkpoint
from weights.files import save_tensors

Config = Mapping[str, Any]
Names = dict[str, str]
"""Names of weights in a model of diffusers or transformers to their names in a file."""

CONFIG = "config.json"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANNELS = ((4, 4), (153, 8))
"""Input and output channels of the UNets of Stable Diffusion 1.5 (and Arc2Face) and of SpinMeRound."""

IGNORED = {
    "moving averages": r"model_ema\..+",
    "position numbers": r"(.+\.)?position_ids",
    "noise schedule": r"betas|logvar|lvlb_weights|posterior_\w+|\w*alphas_cumprod(_prev)?|(denoiser\.)?sigmas",
    "training losses": r"(first_stage_model\.)?loss\..+|loss_fn\..+",
    "CLIP's image half": r"vision_model\..+|(visual|text)_projection\.weight|logit_scale",
}
"""Patterns, by kind, of the tensors in official files that do not decide what a model computes."""

LDM_UNET = "model.diffusion_model."
LDM_VAE = "first_stage_model."
CLIP_TEXT = r"(conditioner\.embedders\.0\.encoder\.|cond_stage_model\.transformer\.)?(text_model\.)?"
"""Pattern of what precedes the names of transformers 5 in SpinMeRound, Stable Diffusion 1.5 and older transformers."""
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of the autoencoder's attention that diffusers renamed after the release of Stable Diffusion 1.5."""


@dataclass(frozen=True, eq=False)
class Part:
    """One model of a pipeline."""

    folder: str
    weights: str
    """File of weights in the folder."""
    released: Config
    """Config of the released weights."""


SD15_VAE_CONFIG: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
"""Config of diffusers' AutoencoderKL."""


CLIP_L_TEXT_CONFIG: Config = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Config of transformers' CLIPTextModel."""


def sd15_unet_config(in_channels: int = 4, out_channels: int = 4) -> dict[str, Any]:
    """Config of diffusers' UNet2DConditionModel; SpinMeRound's differs only in its 153 input and 8 output channels."""
    return unet_config(UNetShape(), in_channels, out_channels)


UNET = Part("unet", "diffusion_pytorch_model.safetensors", sd15_unet_config())
VAE = Part("vae", "diffusion_pytorch_model.safetensors", SD15_VAE_CONFIG)
TEXT = Part("text_encoder", "model.safetensors", CLIP_L_TEXT_CONFIG)
PARTS = (UNET, VAE, TEXT)


@dataclass(frozen=True)
class Converted:
    """Contents of a checkpoint."""

    parts: dict[str, int]
    """Number of tensors by the folder they were written to."""
    ignored: dict[str, int]
    """Number of tensors that were left out, by kind."""


def convert(file: str | Path, dest: str | Path, like: str | Path | None = None) -> Converted:
    """Write the models of a checkpoint as `dest/unet`, `dest/vae` and `dest/text_encoder`, as far as it has them.

    A whole checkpoint of SpinMeRound becomes a model that `spinset views` reads. Other files that can be converted are whole
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
    unused = set(tensors)
    for part in PARTS:
        given = configs.get(part.folder)
        model = blank_model(part, given or part.released)
        if not (names := names_in(part, model, tensors)):
            continue
        if part is UNET and not given:
            model = blank_model(part, sd15_unet_config(*_channels(tensors, names, file)))
        found.append((part, model, take(part, model, names, tensors, file)))
        unused -= set(names.values())
    if not found:
        raise UserError(
            f"{file} has no UNet, autoencoder or CLIP text model; its first tensor is {next(iter(tensors), None)}"
        )
    ignored = _ignored([name for name in tensors if name in unused], file)
    for part, _, _ in found:
        if (dest / part.folder).exists():
            raise UserError(f"{dest / part.folder} is there already; remove it, or give another folder")
    for part, model, weights in found:
        write_part(part, model, weights, dest)
    if not like and len(found) == len(PARTS) and config_of(found[0][1])["in_channels"] == CHANNELS[1][0]:
        write_card(SpinMeRoundConfig(), About("what SpinMeRound's released weights know"), dest)
    return Converted({part.folder: len(weights) for part, _, weights in found}, ignored)


def blank_model(part: Part, config: Config) -> nn.Module:
    """Build the model of a config on the meta device, where its weights have names and shapes and take no memory.

    Raises:
        UserError: the config is of no such model.
    """
    # Importing these takes seconds, and most commands build no model.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    # A config that anyone may have written can fail in any way at all.
    try:
        with torch.device("meta"):
            if part is TEXT:
                return CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
            model: Any = (UNet2DConditionModel if part is UNET else AutoencoderKL).from_config(dict(config))
            return model
    except Exception as error:
        raise UserError(f"the config of {part.folder} builds no model known here ({one_line(error)})") from error


def config_of(model: Any) -> dict[str, Any]:
    """The config of a model of diffusers or transformers, defaults included."""
    return model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)


def names_in(part: Part, model: nn.Module, names: Collection[str]) -> Names:
    """Find the weights of a model among the names of a file, by any of the ways to name them; empty if none is there."""
    weights = model.state_dict()
    found = {here: there for here, there in _translated(part, config_of(model), list(names)) if here in weights}
    return found | {name: name for name in names if name in weights}


def _translated(part: Part, config: Config, names: list[str]) -> Iterable[tuple[str, str]]:
    """Pairs of a name in the model and a name in the file, by the names that are not those of the model itself."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    if part is TEXT:
        return [(re.sub(f"^{CLIP_TEXT}", "", name), name) for name in names]
    # The functions rename tensors, and turn 1 x 1 convolutions into matrices. Each tensor here is its position in `names`.
    prefix, translate = (
        (LDM_UNET, convert_ldm_unet_checkpoint) if part is UNET else (LDM_VAE, convert_ldm_vae_checkpoint)
    )
    positions = {prefix + name.removeprefix(prefix): torch.full((1, 1, 1, 1), i) for i, name in enumerate(names)}
    try:
        pairs = [(name, names[int(position)]) for name, position in translate(positions, config).items()]
    except (KeyError, TypeError) as error:  # a bias without its weight; a config that differs from block to block
        raise UserError(f"the {part.folder} of the checkpoint is not like its config ({one_line(error)})") from error
    for old, new in OLD_VAE_ATTENTION.items() if part is VAE else ():
        pairs += [(name.replace(f".{old}.", f".{new}."), name) for name in names if f".attentions.0.{old}." in name]
    return pairs


def take(
    part: Part, model: nn.Module, names: Names, tensors: Mapping[str, Tensor], file: str | Path
) -> dict[str, Tensor]:
    """Take the weights of a model from the tensors of a file, in the shapes of the model.

    Raises:
        UserError: one is lacking, of another shape, or not of finite floating point numbers.
    """
    blanks = model.state_dict()
    if lacking := [name for name in blanks if name not in names]:
        count = f"{len(lacking)} of the {len(blanks)} tensors of a {part.folder}"
        raise UserError(f"{file} lacks what diffusers calls {lacking[0]} ({count})")
    for here, there in names.items():
        tensor, expected = tensors[there], tuple(blanks[here].shape)
        # LDM's autoencoder attends through 1 x 1 convolutions, which are matrices in diffusers.
        if tuple(tensor.shape) not in (expected, (*expected, 1, 1)):
            raise UserError(f"{file}: {there} has the shape {tuple(tensor.shape)}; it must be {expected}")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in FLOATS
        if not plain or not tensor.isfinite().all():
            raise UserError(f"{file}: {there} is not made of finite floating point numbers, as weights are")
    return {here: tensors[there].reshape(blanks[here].shape) for here, there in names.items()}


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the config in the folder of a model; None if there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not the config of a model")
    return config


def write_part(part: Part, model: Any, weights: Mapping[str, Tensor], dest: Path) -> None:
    """Write the folder of a model into `dest`; it appears when it is complete."""
    scratch = dest / f"{part.folder}.unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_tensors(weights, scratch / part.weights)
    if part is TEXT:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(scratch)
    else:
        model.save_config(scratch)
    scratch.rename(dest / part.folder)


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
