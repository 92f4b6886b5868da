"""The whole path of `spinset views` at the released size, with random weights: it runs, and what it takes.

    python benchmarks/long/full_size.py [--steps 1] [--views 1] [--device cpu]

Writes a model folder of the released shape (UNet, autoencoder and text encoder of random weights, 4.4 GB in a temporary
folder), a checkpoint of it by the released names, and a picture; converts the checkpoint back, and makes views of the picture.
One step of the first call, eight views with both branches of guidance, is 14.6 TFLOP.
"""

import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file

from faces.config import FaceConfig
from infer.config import DirectionsConfig, FilesConfig, PortraitConfig, SamplerConfig, ViewsConfig
from infer.make import views
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import About
from train.networks.model import load_vae, save_model
from train.weights.convert import convert
from train.weights.names import PARTS, SD15_VAE_CONFIG, blank_model, names_in, read_config
from weights.embedded import EMBEDDED
from weights.files import save_tensors


@dataclass(frozen=True)
class Config:
    """Run the released size once."""

    steps: int = 1
    views: int = 1
    device: str = "cpu"
    keep: str = ""
    """Folder for the files, which are kept there."""


@contextmanager
def told(what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.perf_counter() - begun:.0f} s, peak memory so far {peak:.1f} GB", flush=True)


def write_random_model(folder: Path) -> None:
    """A model of the released shape that knows nothing."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    AutoencoderKL(**SD15_VAE_CONFIG).save_pretrained(folder / "vae")
    shape = SpinMeRoundConfig()
    vae = load_vae(str(folder / "vae"))
    save_model(shape.build(vae, About("nothing")), folder)


def write_checkpoint(folder: Path, file: Path) -> None:
    """The models of a folder as one file by the released names."""
    released = json.loads((Path(__file__).parents[2] / "tests" / "golden" / "spinmeround_keys.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for part in PARTS:
        weights = load_file(folder / part.folder / part.weights)
        names = names_in(part, blank_model(part, read_config(folder / part.folder) or {}), released)
        tensors |= {there: weights[here].reshape(released[there]) for here, there in names.items()}
    save_tensors(tensors, file)
    print(f"{len(tensors)} tensors")


def write_picture(file: Path) -> None:
    """A disc for a head, without a background."""
    row, column = np.mgrid[:512, :512]
    inside = (row - 256) ** 2 + (column - 256) ** 2 < 170**2
    pixels = np.where(inside[..., None], np.array([150, 120, 100, 255]), 0).astype(np.uint8)
    Image.fromarray(pixels).save(file)


def main() -> None:
    config = tyro.cli(Config)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(config.keep or scratch)
        with told("model of the released size written"):
            write_random_model(root / "random")
        with told("checkpoint by the released names"):
            write_checkpoint(root / "random", root / "spmr.safetensors")
        with told("converted back"):
            print(convert(root / "spmr.safetensors", root / "model").parts)
        write_picture(root / "photo.png")
        asked = ViewsConfig(
            str(root / "model"),
            (str(root / "photo.png"),),
            str(root / "out"),
            directions=DirectionsConfig(azimuths=tuple(45.0 * (k + 1) for k in range(config.views))),
            sampler=SamplerConfig(config.steps),
            portrait=PortraitConfig(aligned=True, face=FaceConfig(arcface=str(EMBEDDED / "arcface.onnx"))),
            files=FilesConfig(("images", "sheet")),
            allow_embedded=True,
            device=config.device,
        )
        with told(f"views of the picture in {config.steps} steps"):
            print("\n".join(views(asked)))
        made = sorted((root / "out" / "images").glob("*.png"))
        assert all(np.asarray(Image.open(file)).shape == (512, 512, 3) for file in made)
        print(f"{len(made)} pictures of 512 px, and as many of normals")


if __name__ == "__main__":
    main()
