"""Designs of the model of heads64, each trained for the same time on one core, and compared on the same heads and views.

    OMP_NUM_THREADS=1 python benchmarks/long/designs.py --train out/heads64 --held-out out/held64 [--only today fine-joint]

Both datasets need `spinset score --scorers arcface`, and the first `spinset latents`. A short trial finds how many scenes a
design sees in --seconds of processor time; its learning rate falls to zero within them. Compared are the loss at five noise
levels (of today's law, whatever the design's own), and the views that are made of one given view: their L2, and the cosine
of the faces with the true views, on held-out heads and on heads of the training set. Runs are kept in --out.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from faces.models import load_arcface
from geometry.cameras import Cameras
from infer.metrics.likeness import FaceEmbedder, identity_similarity
from infer.metrics.pixels import l2, to_unit
from train.batch import to_bytes
from train.data.loader import open_loader
from train.data.sampling import MultiView
from train.diffusion.config import NoiseLevels, Objective
from train.families import load_model
from train.families.presets import PRESETS
from train.networks.model import Model, autocast
from train.run.config import TrainConfig, ValidationConfig
from train.run.trainer import run
from train.run.validate import Validation, level_losses, sample_scenes
from weights.embedded import HEADS64, RECOGNISER

TODAY = PRESETS["heads64"].config
SEED, MOST_TURNED = 31_000, 20.0


def shaped(**changes: object) -> Callable[[TrainConfig], TrainConfig]:
    """Today's design with another shape of the UNet."""
    return lambda own: replace(own, model=replace(own.model, unet=replace(own.model.unet, **changes)))  # pyright: ignore


def views(count: int, conditions: tuple[int, ...] = (0, 1, 3)) -> Callable[[TrainConfig], TrainConfig]:
    """Today's design, trained on scenes of so many views."""
    return lambda own: replace(own, loader=replace(own.loader, recipe=MultiView(count, conditions)))


def noise(mean: float, std: float) -> Callable[[TrainConfig], TrainConfig]:
    """Today's design with other noise levels."""
    return lambda own: replace(own, objective=replace(own.objective, noise=NoiseLevels(mean, std)))


DESIGNS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "today": lambda own: own,
    "fine-joint": shaped(attention=(True, True, True), joint_from=0),
    "fine-joint-4-views": lambda own: views(4)(shaped(attention=(True, True, True), joint_from=0)(own)),
    "high-noise-given": lambda own: noise(0.8, 1.6)(views(8, (0, 1, 1, 1, 3))(own)),
}


@dataclass(frozen=True)
class Config:
    """Train and compare the designs."""

    train: str
    """Procedural heads to train on."""
    held_out: str
    """Other procedural heads."""
    out: Path = Path("out/designs")
    only: tuple[str, ...] = tuple(DESIGNS)
    """Designs that are compared."""
    seconds: float = 300
    """Processor time of each run."""
    samples: int = 0
    """Scenes of each run; 0 finds by a trial how many fit into --seconds, for which the machine must be quiet."""
    init: str = ""
    """Folder of a model to start from, for designs of its shape; by default weights are random."""
    lr: float = 5e-4
    high_noise: bool = False
    """Train on high noise levels alone, with one of four views given, where what is made must be read off the given view."""
    heads: int = 16
    """Heads of each dataset whose views are made."""
    steps: int = 10
    """Number of sampling steps; 0 makes no views, and compares losses alone."""
    scale: float = 2.0


def config_of(config: Config, design: str) -> TrainConfig:
    own = DESIGNS[design](TODAY)
    if config.high_noise:
        own = replace(views(4, (1,))(own), objective=Objective(NoiseLevels(2.0, 0.5), drop=0.0))
    loader = replace(own.loader, data=config.train)
    optim = replace(own.optim, lr=config.lr, warmup=100)
    rare = {"save_every": 10**9, "snapshot_every": 10**9}
    return replace(own, loader=loader, optim=optim, init=config.init, out=str(config.out / design), **rare)


def scenes_within(config: TrainConfig, seconds: float, few: int = 16, more: int = 80) -> int:
    """The number of scenes of a run of so much processor time, by two short runs that differ in their length alone."""
    taken = []
    with TemporaryDirectory() as folder:
        for samples in (few, more):
            begin = time.process_time()
            run(replace(config, samples=samples, out=f"{folder}/{samples}", validation=ValidationConfig()))
            taken.append(time.process_time() - begin)
    batch = config.loader.batch
    return round(seconds * (more - few) / (taken[1] - taken[0]) / batch) * batch


def truth(data: str, heads: int) -> Validation:
    """The same frontal view and seven others of some heads, for all designs."""
    recipe = MultiView(8, (1,), max_turn=MOST_TURNED)
    loader = replace(TODAY.loader, data=data, recipe=recipe, batch=heads, seed=SEED, workers=0)
    batch = next(iter(open_loader(loader)))
    assert isinstance(batch.rgb, Tensor)
    return Validation(batch, torch.empty(0), batch.rgb)


@torch.inference_mode()
def measure(model: Model, scenes: Validation, embedder: FaceEmbedder, config: Config) -> dict[str, float]:
    """The losses, and L2 and identity of the views that are made."""
    own = scenes.batch
    latents = model.encode(*(getattr(own, name) for name in model.config.members))
    process = TODAY.model.process(TODAY.objective.noise)
    with autocast("auto", "cpu"):
        losses = level_losses(model, model.network, process, replace(scenes, latents=latents), 8)
        named = {name.removeprefix("validation/"): value for name, value in losses.items()}
        if not config.steps:
            return named
        made = sample_scenes(model, model.network, own, latents, SEED, config.steps, config.scale)
    pictures = model.decode(made.float())[0][:, 1:].flatten(0, 1)
    true, cameras = (
        scenes.pictures[:, 1:].flatten(0, 1),
        Cameras(own.c2w[:, 1:].flatten(0, 1), own.K[:, 1:].flatten(0, 1)),
    )
    faces = [embedder(to_bytes(views), cameras) for views in (pictures, true)]
    return {
        **named,
        "L2": float(l2(to_unit(pictures), to_unit(true)).mean()),
        "identity": float(np.nanmean(identity_similarity(*faces))),
    }


def main() -> None:
    config = tyro.cli(Config)
    embedder = FaceEmbedder(load_arcface(str(RECOGNISER)))
    sets = {"held-out": truth(config.held_out, config.heads), "training": truth(config.train, config.heads)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for design in ("embedded", *config.only):
        file = config.out / design / "figures.json"
        if not file.exists():
            folder, seen = HEADS64, {}
            if design != "embedded":
                asked = config_of(config, design)
                asked = replace(asked, samples=config.samples or scenes_within(asked, config.seconds))
                folder, seen = run(asked), {"scenes": asked.samples}
            model = load_model(folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            figures = {name: {**seen, **measure(model, scenes, embedder, config)} for name, scenes in sets.items()}
            file.write_text(json.dumps(figures))
        found[design] = json.loads(file.read_text())
        print(design, json.dumps(found[design]), flush=True)
    budget = f"{config.samples} scenes" if config.samples else f"{config.seconds:g} s"
    start = f"from {config.init}" if config.init else "from random weights"
    columns = list(next(iter(found["embedded"].values())))
    table = Table("design", "heads", "scenes", *columns, title=f"{budget} each, {start}")
    for design, figures in found.items():
        for heads, own in figures.items():
            table.add_row(design, heads, f"{own.get('scenes', 0):.0f}", *(f"{own[name]:.4f}" for name in columns))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
