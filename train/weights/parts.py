"""The models that a pipeline is made of: which tensors each has, what they are called in files, and its folder."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import UserError
from train.networks.sd15 import CLIP_L_TEXT_CONFIG, SD15_VAE_CONFIG, sd15_unet_config
from train.weights.checkpoint_file import one_line
from train.weights.ldm_names import Config, Names, old_vae_names, shape_there, text_names, unet_names, vae_names
from weights.tensors import save_tensors

CONFIG = "config.json"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Part:
    """A kind of model."""

    folder: str
    weights: str
    """The file of weights in it."""
    released: Config
    """The config of official weights."""
    names: Callable[[Config], Names]
    """Names here to those of LDM."""
    prefixes: tuple[str, ...]
    """What may stand before LDM's names in a file; SpinMeRound's is the first."""
    older: Callable[[Config], Names] | None = None
    """Names here to those in files from before some were changed here."""


UNET = Part(
    "unet", "diffusion_pytorch_model.safetensors", sd15_unet_config(), unet_names, ("model.diffusion_model.", "")
)
VAE = Part(
    "vae", "diffusion_pytorch_model.safetensors", SD15_VAE_CONFIG, vae_names, ("first_stage_model.", ""), old_vae_names
)
TEXT = Part(
    "text_encoder",
    "model.safetensors",
    CLIP_L_TEXT_CONFIG,
    text_names,
    ("conditioner.embedders.0.encoder.", "cond_stage_model.transformer.", ""),
)
PARTS = (UNET, VAE, TEXT)


def blank_model(part: Part, config: Config) -> nn.Module:
    """The model of a config, on the meta device: it knows the names and shapes of its weights and takes no memory.

    Raises:
        ValueError: the config is of no such model, or of one with layers that LDM's has not.
    """
    # A config that anyone may have written can fail in any way at all.
    try:
        with torch.device("meta"):
            model = _build(part, config)
        odd = part.names(settings(model)).keys() ^ model.state_dict().keys()
    except Exception as error:
        raise UserError(f"the config of {part.folder} builds no model known here ({one_line(error)})") from error
    if odd:
        raise UserError(f"the config of {part.folder} is not of Stable Diffusion 1.5's kind (it differs in {min(odd)})")
    return model


def settings(model: Any) -> dict[str, Any]:
    """The config of a model, with what was left to defaults."""
    return model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)


def names_in(part: Part, model: nn.Module, tensors: Mapping[str, Tensor]) -> Names:
    """Names here to those in a file, in whichever way of naming fits it best; empty where no tensor is of this part."""
    config = settings(model)
    ldm = part.names(config)
    ways = [{here: prefix + there for here, there in ldm.items()} for prefix in part.prefixes]
    ways += [{here: here for here in ldm}, *([part.older(config)] if part.older else [])]
    found, best = max(
        ((sum(there in tensors for there in way.values()), way) for way in ways), key=lambda pair: pair[0]
    )
    return best if found else {}


def take(
    part: Part, model: nn.Module, names: Names, tensors: Mapping[str, Tensor], file: str | Path
) -> dict[str, Tensor]:
    """The weights of a model out of a file's tensors, by the names and in the shapes of here.

    Raises:
        ValueError: one is missing, of another shape, or not of finite floating point numbers.
    """
    if missing := [there for there in names.values() if there not in tensors]:
        raise UserError(f"{file} lacks {missing[0]} ({len(missing)} of the {len(names)} tensors of a {part.folder})")
    blanks = model.state_dict()
    for here, there in names.items():
        shape, expected = tuple(tensors[there].shape), shape_there(there, tuple(blanks[here].shape))
        if shape != expected:
            raise UserError(f"{file}: {there} has the shape {shape}; it must be {expected}")
    for there in names.values():
        tensor = tensors[there]
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in FLOATS
        if not plain or not tensor.isfinite().all():
            raise UserError(f"{file}: {there} is not made of finite floating point numbers, as weights are")
    return {here: tensors[there].reshape(blanks[here].shape) for here, there in names.items()}


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config of a model's folder, if it has one."""
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
    """Write a model's folder into `dest`, which appears when it is whole."""
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


def _build(part: Part, config: Config) -> nn.Module:
    # Importing these takes seconds, and only whoever builds a model needs them.
    if part is TEXT:
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    built: Any = (UNet2DConditionModel if part is UNET else AutoencoderKL).from_config(dict(config))
    return built
