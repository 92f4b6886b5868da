"""SpinMeRound's ablations on procedural heads: the full model, without input, without identity, without normals.

    python benchmarks/long/ablations.py --train out/heads64 --held-out out/held64 [--samples 64000] [--seeds 0 1 2]

Each variant is trained anew for each seed with the same budget on the same heads, and makes the same views of the same
held-out heads: a frontal view is given (or its identity alone), and the others are made and compared with the truth. Both
datasets need `spinset score --scorers arcface`. Runs are kept in --out, and the same command goes on; the paper's Table 2
is printed beside.

    python benchmarks/long/ablations.py --train out/heads64 --held-out out/held64 --data clean=out/clean defects=out/dirty \
        selected=out/dirty:spinmeround

trains the full model on each of these datasets instead, of which one may be read through a selection: what filters are worth.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from faces.models import load_arcface
from geometry.cameras import Cameras
from infer.metrics.likeness import FaceEmbedder, identity_similarity
from infer.metrics.pixels import l2, ssim, to_unit
from train.batch import Batch, to_bytes
from train.data.loader import open_loader
from train.data.sampling import MultiView
from train.families import load_model
from train.families.presets import PRESETS
from train.networks.model import Model
from train.run.config import TrainConfig, ValidationConfig
from train.run.trainer import run
from train.run.validate import sample_scenes
from weights.embedded import RECOGNISER

PAPER = {
    "no-input": (0.1246, 0.4299, 0.568),
    "no-identity": (0.028, 0.26, 0.70),
    "no-normals": (0.056, 0.32, 0.65),
    "full": (0.018, 0.22, 0.75),
}
"""L2, LPIPS and SSIM of SpinMeRound's Table 2."""
MOST_TURNED, SEED = 20.0, 31_000


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
    data: tuple[str, ...] = ()
    """Datasets to train the full model on, as NAME=FOLDER or NAME=FOLDER:SELECTION, instead of the ablations."""
    init: str = ""
    """A model to start every run from; random weights by default."""
    views: int = 8
    """Views of a scene."""
    heads: int = 100
    """Held-out heads that are compared."""
    steps: int = 20
    scale: float = 2.0
    latents: bool = False
    """Read cached latents."""
    threads: int = 2


def variants(config: Config) -> dict[str, tuple[TrainConfig, str, str]]:
    """The preset, the dataset and the selection of every variant."""
    full = PRESETS["heads64"].config
    if not config.data:
        presets = {name: PRESETS["heads64" if name == "full" else f"heads64-{name}"].config for name in PAPER}
        return {name: (own, config.train, "") for name, own in presets.items()}
    found = {}
    for text in config.data:
        name, _, place = text.partition("=")
        folder, _, selection = place.partition(":")
        found[name] = full, folder, selection
    return found


def config_of(config: Config, variant: str, seed: int) -> TrainConfig:
    own, data, selection = variants(config)[variant]
    assert isinstance(own.loader.recipe, MultiView)
    recipe = replace(own.loader.recipe, views=config.views)
    loader = replace(own.loader, data=data, selection=selection, recipe=recipe, seed=seed, workers=0)
    return replace(
        own,
        loader=loader,
        samples=config.samples,
        init=config.init,
        seed=seed,
        latents=config.latents,
        out=str(config.out / f"{variant}-{seed}"),
        validation=ValidationConfig(),
        save_every=16_000,
        snapshot_every=10**9,
    )


def truth(config: Config) -> Batch:
    """The same frontal view and seven others of each held-out head, for all variants."""
    own = PRESETS["heads64"].config
    recipe = MultiView(config.views, (1,), max_turn=MOST_TURNED)
    loader = replace(
        own.loader, data=config.held_out, recipe=recipe, batch=config.heads, seed=SEED, random_background=0.0, workers=0
    )
    return next(iter(open_loader(loader)))


@torch.inference_mode()
def measure(model: Model, batch: Batch, variant: str, config: Config) -> dict[str, list[float]]:
    """L2 and SSIM of the views that were made, and the cosine of the faces with the true ones; means of every head."""
    figures: dict[str, list[float]] = {"L2": [], "SSIM": [], "identity": []}
    embedder = FaceEmbedder(load_arcface(str(RECOGNISER)))
    for head in range(len(batch)):
        own = batch.part(slice(head, head + 1))
        if variant == "no-input":
            own = replace(own, is_condition=torch.zeros_like(own.is_condition))
        if variant == "no-identity":
            own = replace(own, identity_embedding=None)
        assert isinstance(own.rgb, torch.Tensor)
        latents = model.encode(*(getattr(own, name) for name in model.config.members))
        made = sample_scenes(model, model.network, own, latents, SEED + head, config.steps, config.scale)
        pictures, true = model.decode(made)[0][0, 1:], own.rgb[0, 1:]
        cameras = Cameras(own.c2w[0, 1:], own.K[0, 1:])
        faces = [embedder(to_bytes(views), cameras) for views in (pictures, true)]
        figures["L2"].append(float(l2(to_unit(pictures), to_unit(true)).mean()))
        figures["SSIM"].append(float(ssim(to_unit(pictures), to_unit(true)).mean()))
        figures["identity"].append(float(np.nanmean(identity_similarity(*faces))))
    return figures


def interval(values: Float[np.ndarray, "s h"]) -> str:
    """The mean over seeds and heads, with a 95 % interval by bootstrap over both."""
    random = np.random.default_rng(0)
    seeds, heads = values.shape
    drawn = [
        np.nanmean(values[random.integers(seeds, size=seeds)][:, random.integers(heads, size=heads)])
        for _ in range(2000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{np.nanmean(values):.4f} ({low:.4f} to {high:.4f})"


def main() -> None:
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    batch, names = truth(config), list(variants(config))
    found: dict[str, dict[str, list[list[float]]]] = {name: {} for name in names}
    for seed in config.seeds:
        for name in names:
            asked = config_of(config, name, seed)
            file = Path(asked.out) / "figures.json"
            if not file.exists():
                file.write_text(json.dumps(measure(load_model(run(asked)), batch, name, config)))
            for figure, values in json.loads(file.read_text()).items():
                found[name].setdefault(figure, []).append(values)
            print(name, seed, {f: round(float(np.nanmean(v[-1])), 4) for f, v in found[name].items()}, flush=True)
    title = f"{config.samples} scenes each, seeds {', '.join(map(str, config.seeds))}, {len(batch)} held-out heads"
    table = Table("variant", *found[names[0]], "paper: L2, LPIPS, SSIM", title=title)
    last = names[-1] if not config.data else names[0]
    for name in names:
        own = {figure: np.array(values) for figure, values in found[name].items()}
        table.add_row(name, *map(interval, own.values()), ", ".join(f"{x:g}" for x in PAPER.get(name, ())))
    for name in names:
        if name != last:
            pairs = [np.array(found[name][figure]) - np.array(found[last][figure]) for figure in found[name]]
            table.add_row(f"{name} minus {last}", *map(interval, pairs), "")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
