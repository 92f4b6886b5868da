"""Finds the weights of one model of diffusers or transformers in the tensors of a file, by the names of any official release.

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

from manifests.errors import UserError
from train.networks.config import UNetShape
from train.networks.unet import unet_config
from train.weights.checkpoint_file import one_line
from weights.files import save_tensors

Config = Mapping[str, Any]
Names = dict[str, str]
"""Names of weights in a model of diffusers or transformers to their names in a file."""

CONFIG = "config.json"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
