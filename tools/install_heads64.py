"""Replaces the embedded multiview model by a trained one, in half precision: python -m tools.install_heads64 MODEL."""

import shutil
from pathlib import Path

import tyro
from safetensors.torch import load_file
from tyro.conf import Positional

from manifests.errors import UserError
from train.families import load_model
from train.networks.config import FILE, UNET, VAE, WEIGHTS
from train.networks.model import vae_sha256
from weights.embedded import HEADS64
from weights.files import save_tensors


def install(model: Positional[Path]) -> None:
    """Copy the folder of a trained model over the embedded one, in half precision.

    Raises:
        UserError: the folder is no model, or was trained with another autoencoder.
    """
    if load_model(model).vae.sha256 != vae_sha256(str(HEADS64 / VAE)):
        raise UserError(f"{model} was trained with another autoencoder than {HEADS64 / VAE}")
    (HEADS64 / UNET).mkdir(parents=True, exist_ok=True)
    for name in (FILE, f"{UNET}/config.json"):
        shutil.copyfile(model / name, HEADS64 / name)
    half = {name: weight.half() for name, weight in load_file(model / UNET / WEIGHTS).items()}
    save_tensors(half, HEADS64 / UNET / WEIGHTS)


if __name__ == "__main__":
    tyro.cli(install)
