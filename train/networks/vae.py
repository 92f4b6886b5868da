"""The autoencoder that latents belong to: a diffusers AutoencoderKL folder that the user brings, read from local files."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from manifests.errors import UserError
from train.networks.config import CONFIG, WEIGHTS, require_vae
from weights.files import sha256

SHIFTS = ("shift_factor", "latents_mean", "latents_std")
"""Settings that normalise latents other than by a factor; no model family here supports them."""


@dataclass(frozen=True, eq=False)
class Vae:
    """A loaded autoencoder."""

    model: torch.nn.Module
    folder: str
    """Where it was loaded from."""
    sha256: str
    scaling_factor: float
    """Latents times this have about unit variance."""
    factor: int
    """Pixels of a side per latent cell."""
    channels: int
    patch: int = 1
    """Pixels of a side that the network reads and writes as channels of one place: an autoencoder of 3 p^2 channels in and out
    works on patches, which costs little and keeps every pixel in reach."""

    @torch.inference_mode()
    def posterior(self, images: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, "n 2 c _ _"]:
        """Mean and standard deviation of the latents of images in [-1, 1], not scaled."""
        images = images.to(next(self.model.parameters()).device)
        # Plain float32, the same at every run: these numbers are kept for years.
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            latents: Any = self.model.encode(pixel_unshuffle(images, self.patch)).latent_dist  # pyright: ignore[reportCallIssue]
        return torch.stack([latents.mean, latents.std], 1)

    def decode(self, latents: Float[Tensor, "n c i j"]) -> Float[Tensor, "n 3 h w"]:
        """Images of latents that are not scaled, about in [-1, 1]."""
        return pixel_shuffle(self.model.decode(latents).sample, self.patch)  # pyright: ignore[reportCallIssue]


def load_vae(folder: str, device: str = "cpu") -> Vae:
    """Load an autoencoder; nothing is downloaded and no pickle is opened.

    Raises:
        FileNotFoundError: the folder lacks its config or its safetensors.
        ValueError: the config is damaged.
        ValueError: the weights are not all there, or not this model's; its latents are shifted, not only scaled; or its
            channels are neither colours nor patches of them.
    """
    sha256 = vae_sha256(folder)
    # Importing diffusers takes seconds, which only encoding and decoding need.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{folder} does not load as an AutoencoderKL ({str(error).splitlines()[0]})") from error
    model, info = loaded
    if wrong := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise UserError(f"{folder} is not whole: {len(wrong)} weights are missing or unknown (first: {wrong[0]})")
    if shifted := [name for name in SHIFTS if model.config.get(name) is not None]:
        raise UserError(f"{folder} has a {shifted[0]}; only autoencoders with a scaling_factor alone are supported")
    read, written = model.config.in_channels, model.config.out_channels
    patch = math.isqrt(read // 3)
    if not read == written == 3 * patch**2:
        raise UserError(
            f"{folder} has {read} channels in and {written} out; 3 are colours, 3 p^2 patches of p x p pixels"
        )
    factor = patch * 2 ** (len(model.config.block_out_channels) - 1)
    scaling = float(model.config.scaling_factor)
    return Vae(model.to(device).eval(), folder, sha256, scaling, factor, model.config.latent_channels, patch)


def vae_sha256(folder: str) -> str:
    """Hash of an autoencoder's weights and settings, without the version of the library that saved it.

    Raises:
        FileNotFoundError: the folder lacks its config or its safetensors.
    """
    require_vae(folder)
    try:
        config = json.loads((Path(folder) / CONFIG).read_bytes())
        settings = {name: value for name, value in config.items() if not name.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder}/{CONFIG} is not the config of an autoencoder ({error})") from error
    weights = sha256(Path(folder) / WEIGHTS)
    return hashlib.sha256(json.dumps([weights, settings], sort_keys=True).encode()).hexdigest()
