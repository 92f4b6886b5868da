"""Puts a trained model in the place of the embedded one, in half precision: python -m tools.install_heads64 MODEL."""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file

from manifests.errors import UserError
from train.networks.config import FILE, WEIGHTS
from train.networks.model import UNET, VAE, load_model
from train.networks.vae import vae_sha256
from weights.embedded import HEADS64
from weights.tensors import save_tensors


def ship(model: Path) -> None:
    """Copy a model over the embedded one; raises what `load_model` raises if it is none."""
    if load_model(model).vae.sha256 != vae_sha256(str(HEADS64 / VAE)):
        raise UserError(f"{model} was trained with another autoencoder than {HEADS64 / VAE}")
    (HEADS64 / UNET).mkdir(parents=True, exist_ok=True)
    for name in (FILE, f"{UNET}/config.json"):
        shutil.copyfile(model / name, HEADS64 / name)
    half = {name: weight.half() for name, weight in load_file(model / UNET / WEIGHTS).items()}
    save_tensors(half, HEADS64 / UNET / WEIGHTS)


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
