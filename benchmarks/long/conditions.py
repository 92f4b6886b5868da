"""How much a model reads off its conditions: python benchmarks/long/conditions.py HELD_OUT [--model FOLDER].

The loss at some noise levels where the model has its given view and its identity, where it lacks them, and where it has those
of another head. At high levels nothing but the conditions tells what is to be made. HELD_OUT needs `spinset score --scorers
arcface`.
"""

from dataclasses import dataclass, replace

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tyro.conf import Positional

from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import MultiView
from train.diffusion.process import gaussian, losses
from train.families import load_model, model_folder
from train.families.spinmeround.model import SpinMeRoundConditions
from train.networks.model import autocast

SEED, MOST_TURNED = 31_000, 20.0


@dataclass(frozen=True)
class Config:
    """Measure what a SpinMeRound model reads off its conditions."""

    data: Positional[str]
    """Heads that the model was not trained on."""
    model: str = "heads64"
    heads: int = 24
    views: int = 8
    levels: tuple[float, ...] = (0.6, 1.8, 5.0, 14.5, 40.0)
    """Noise levels (sigma)."""


@torch.inference_mode()
def main() -> None:
    config = tyro.cli(Config)
    model = load_model(model_folder(config.model))
    recipe = MultiView(config.views, (1,), max_turn=MOST_TURNED)
    loader = LoaderConfig(config.data, recipe, batch=config.heads, members=model.config.members, seed=SEED, workers=0)
    loader = replace(loader, embeddings="arcface", resolution=model.about.resolution, random_background=0.0)
    batch = next(iter(open_loader(loader)))
    latents = model.encode(*(getattr(batch, name) for name in model.config.members))
    whole = model.conditions_of(batch, latents)
    assert isinstance(whole, SpinMeRoundConditions)

    def without(view: bool, identity: bool) -> SpinMeRoundConditions:
        return whole.dropped(torch.tensor([[view, identity]]).expand(len(batch), 2))

    kinds = {
        "view and identity": whole,
        "identity alone": without(True, False),
        "view alone": without(False, True),
        "neither": without(True, True),
        "another head's view": replace(whole, clean=whole.clean.roll(1, 0)),
        "another head's identity": replace(whole, context=whole.context.roll(1, 0)),
    }
    table = Table("given", *map(str, config.levels), title=f"loss by sigma, {len(batch)} heads, {config.model}")
    noise = gaussian(SEED, "conditions", range(len(batch)), latents)
    for name, conditions in kinds.items():

        def loss(sigma: float, conditions: SpinMeRoundConditions = conditions) -> Tensor:
            parts = [slice(begin, begin + 8) for begin in range(0, len(batch), 8)]
            level = torch.full((len(batch),), sigma)
            one = [losses(model.network, model.process, conditions[p], latents[p], noise[p], level[p]) for p in parts]
            return torch.cat(one).mean()

        with autocast("auto", "cpu"):
            table.add_row(name, *(f"{loss(sigma):.3f}" for sigma in config.levels))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
