"""Whether decoding and models overlap when heads are scored: each alone and both together, in one run.

    python benchmarks/scoring.py [--identities 24]

once with the embedded models and once with a CLIP of ViT-B-32's shape (random weights), so that first decoding and then
the model is the slower of the two.
"""

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import pyarrow as pa
import torch
import tyro
from safetensors.torch import save_file

from datagen.config import GenerateConfig, MeshConfig
from datagen.generate import generate
from filters.config import ClipConfig, ScoreConfig
from filters.score import AHEAD, _prepare, open_scorers, score_shard
from filters.scorer import Scorer
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.dataset import Dataset


@dataclass(frozen=True)
class Config:
    """Score one shard of procedural heads, its parts apart and together."""

    identities: int = 24
    rig: str = "gen3dface-48"
    resolution: int = 256
    decoders: int = 1
    repeats: int = 3


def large_clip(folder: Path) -> str:
    torch.manual_seed(0)
    shape = open_clip.get_model_config("ViT-B-32")
    weights = {k: v.contiguous() for k, v in open_clip.CLIP(**shape).state_dict().items()}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": shape, "preprocess_cfg": {}}))
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.monotonic()
    result = work()
    return time.monotonic() - begun, result


def measure(dataset: Dataset, config: Config, scorers: list[Scorer]) -> tuple[float, float, float]:
    """Seconds for a shard: decoding and preparing alone, models alone, and the job itself."""
    views, rows = dataset.views(0), dataset.identities(0).to_pylist()
    owner = views.column("identity").to_numpy()
    own = [views.filter(pa.array(owner == row["identity"])) for row in rows]

    def model(prepared: list[list[Any]]) -> None:
        for heads in prepared:
            for scorer, ready in zip(scorers, heads, strict=True):
                scorer.score(ready)

    with ThreadPoolExecutor(config.decoders, initializer=partial(torch.set_num_threads, 1)) as beside:
        prepare = partial(_prepare, dataset, 0, scorers=scorers)
        decoding, prepared = seconds_of(lambda: list(beside.map(prepare, rows, own)))
        scoring, _ = seconds_of(lambda: model(prepared))
        together, _ = seconds_of(lambda: list(score_shard(dataset, Unit(0), scorers, beside, AHEAD * config.decoders)))
    return decoding, scoring, together


def main() -> None:
    config = tyro.cli(Config)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        job = GenerateConfig(
            f"{folder}/heads",
            identities=config.identities,
            rig=config.rig,
            resolution=config.resolution,
            identities_per_shard=config.identities,
            mesh=MeshConfig(64),
            pool=PoolConfig(inline=True),
        )
        dataset = generate(job)
        (clip := Path(folder) / "clip").mkdir()
        for name, model, scorers in (
            ("embedded models, all scorers", "", ("mesh", "image", "clip_janus", "arcface")),
            ("a CLIP of ViT-B-32's shape", large_clip(clip), ("clip_janus",)),
        ):
            opened, _ = open_scorers(ScoreConfig(job.out, scorers, ClipConfig(model)), "procedural")
            ratios = []
            for _ in range(config.repeats):
                decoding, scoring, together = measure(dataset, config, opened)
                ratios.append(max(decoding, scoring) / together)
                print(
                    f"{name}: decoding alone {decoding:.2f} s, models alone {scoring:.2f} s, together {together:.2f} s"
                )
            print(
                f"{name}: {median(ratios):.2f} of the slower alone, {dataset.done(0)['views'] / together:.0f} views/s"
            )


if __name__ == "__main__":
    main()
