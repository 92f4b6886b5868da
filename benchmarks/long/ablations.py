"""SpinMeRound's ablations on procedural heads: the full model, without input, without identity, without normals.

    python benchmarks/long/ablations.py --train out/heads64 --held-out out/heads64-held-out [--samples 64000] [--seeds 0 1 2]

Each variant is trained anew for each seed with the same budget on the same heads, and makes the same views of the same
held-out heads: a frontal view is given (or its identity alone), seven others are made and compared with the truth. Both
datasets need `spinset score --scorers arcface`. Runs are kept in --out, and the same command goes on; the paper's Table 2
is printed beside.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from infer.metrics.pixels import l2, ssim
from train.batch import Batch
from train.data.loader import open_loader
from train.data.sampling import MultiView
from train.families import load_model
from train.families.presets import PRESETS
from train.networks.model import Model
from train.run.config import TrainConfig
from train.run.trainer import run
from train.run.validate import sample_scenes

PAPER = {
    "no-input": (0.1246, 0.4299, 0.568),
    "no-identity": (0.028, 0.26, 0.70),
    "no-normals": (0.056, 0.32, 0.65),
    "full": (0.018, 0.22, 0.75),
}
"""L2, LPIPS and SSIM of SpinMeRound's Table 2."""
VIEWS, MOST_TURNED, SEED = 8, 20.0, 31_000


@dataclass(frozen=True)
class Config:
    """Train and compare the ablations."""

    train: str
    """Procedural heads to train on."""
    held_out: str
    """Other procedural heads."""
    out: Path = Path("out/ablations")
    samples: int = 64_000
    """Scenes of each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    heads: int = 100
    """Held-out heads that are compared."""
    steps: int = 20
    scale: float = 2.0
    latents: bool = False
    """Read cached latents."""
    threads: int = 2


def config_of(config: Config, variant: str, seed: int) -> TrainConfig:
    own = PRESETS["heads64" if variant == "full" else f"heads64-{variant}"].config
    assert isinstance(own, TrainConfig)
    loader = replace(own.loader, data=config.train, seed=seed)
    out = str(config.out / f"{variant}-{seed}")
    return replace(
        own, loader=loader, samples=config.samples, seed=seed, latents=config.latents, out=out, save_every=16_000
    )


def truth(config: Config) -> Batch:
    """The same frontal view and seven others of each held-out head, for all variants."""
    own = PRESETS["heads64"].config
    recipe = MultiView(VIEWS, (1,), max_turn=MOST_TURNED)
    loader = replace(
        own.loader, data=config.held_out, recipe=recipe, batch=config.heads, seed=SEED, random_background=0.0, workers=0
    )
    return next(iter(open_loader(loader)))


@torch.inference_mode()
def measure(model: Model, batch: Batch, variant: str, config: Config) -> tuple[float, float]:
    """Mean L2 and SSIM over the views that were made."""
    errors, likeness = [], []
    for head in range(len(batch)):
        own = batch.part(slice(head, head + 1))
        if variant == "no-input":
            own = replace(own, is_condition=torch.zeros_like(own.is_condition))
        if variant == "no-identity":
            own = replace(own, identity_embedding=None)
        assert isinstance(own.rgb, torch.Tensor)
        latents = model.encode(*(getattr(own, name) for name in model.config.members))
        made = model.decode(sample_scenes(model, model.network, own, latents, SEED + head, config.steps, config.scale))[
            0
        ]
        pictures = [((views[0, 1:] + 1) / 2).clamp(0, 1) for views in (made, own.rgb)]
        errors.append(l2(*pictures))
        likeness.append(ssim(*pictures))
    return float(torch.cat(errors).mean()), float(torch.cat(likeness).mean())


def main() -> None:
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    batch, found = truth(config), {}
    for seed in config.seeds:
        for variant in PAPER:
            asked = config_of(config, variant, seed)
            file = Path(asked.out) / "figures.json"
            if not file.exists():
                file.write_text(json.dumps(measure(load_model(run(asked)), batch, variant, config)))
            found.setdefault(variant, []).append(json.loads(file.read_text()))
    title = f"{config.samples} scenes each, seeds {', '.join(map(str, config.seeds))}, {len(batch)} held-out heads"
    table = Table("variant", "L2", "SSIM", "paper: L2", "LPIPS", "SSIM", title=title)
    for variant, figures in found.items():
        means, spread = np.mean(figures, 0), np.ptp(figures, 0)
        own = [f"{m:.4f} (range {s:.4f})" for m, s in zip(means, spread, strict=True)]
        table.add_row(variant, *own, *(f"{number:g}" for number in PAPER[variant]))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
