"""How much of a face an autoencoder leaves: python benchmarks/long/autoencoder.py HELD_OUT [--vae FOLDER].

Cosines of face embeddings of true frontal views and of what is left of them: through the autoencoder, with noise on its
latents as a model's errors are, and shifted. Of procedural heads, by the embedded recogniser.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tyro.conf import Positional

from faces.models import load_arcface
from geometry.directions import turned
from infer.evaluation.held_out import MAX_ELEVATION, StoredPeople, choose_people
from infer.metrics.likeness import FaceEmbedder, cosines
from infer.metrics.pixels import psnr, to_unit
from train.batch import to_bytes
from train.networks.model import load_vae
from weights.embedded import EMBEDDED, HEADS64


@dataclass(frozen=True)
class Config:
    """Measure an autoencoder."""

    data: Positional[str]
    """Procedural heads that nothing was trained on."""
    vae: str = str(HEADS64 / "vae")
    people: int = 48
    views: int = 6
    """Largest number of views of each person."""
    resolution: int = 64


def changes(vae_folder: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """A change of pictures in [-1, 1]."""
    vae, noise = load_vae(vae_folder), torch.Generator().manual_seed(0)

    def through(amount: float) -> Callable[[Tensor], Tensor]:
        def change(pictures: Tensor) -> Tensor:
            code = vae.posterior(pictures)[:, 0]
            error = amount * torch.randn(code.shape, generator=noise) / vae.scaling_factor
            return vae.decode(code + error).clamp(-1, 1)

        return change

    return {
        "autoencoder": through(0.0),
        "autoencoder, noise 0.1": through(0.1),
        "autoencoder, noise 0.2": through(0.2),
        "shifted by two pixels": lambda pictures: pictures.roll(2, -1),
    }


@torch.inference_mode()
def main() -> None:
    config = tyro.cli(Config)
    people = StoredPeople(config.data, "", "", config.resolution)
    embedder = FaceEmbedder(load_arcface(str(EMBEDDED / "arcface.onnx")))
    found: dict[str, list[tuple[float, float]]] = {}
    what = changes(config.vae)
    for name in choose_people(people.names, config.people, 0):
        person = people.person(name)
        frontal = (turned(person.azimuth) <= embedder.max_turn) & (np.abs(person.elevation) <= MAX_ELEVATION)
        held = person.read(np.flatnonzero(frontal)[: config.views])
        own = replace(embedder, points=held.points)
        true = own(to_bytes(held.rgb), held.cameras).embedding
        for kind, change in what.items():
            left = change(held.rgb)
            likeness = cosines(own(to_bytes(left), held.cameras).embedding, true)
            decibels = psnr(to_unit(left), to_unit(held.rgb))
            found.setdefault(kind, []).extend(zip(likeness.tolist(), decibels.tolist(), strict=True))
    table = Table("", "cosine", "PSNR, dB", title=f"{len(next(iter(found.values())))} frontal views, {config.vae}")
    for kind, rows in found.items():
        table.add_row(kind, *(f"{mean:.{digits}f}" for mean, digits in zip(np.mean(rows, 0), (3, 1), strict=True)))
    Console().print(table)


if __name__ == "__main__":
    main()
