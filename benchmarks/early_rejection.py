"""Savings of early rejection: the same heads, a quarter of them Janus, generated with and without `--reject.policy early`.

python benchmarks/early_rejection.py [--identities 48]
"""

import tempfile
import time
from dataclasses import dataclass

import torch
import tyro

from datagen.config import GenerateConfig, ProceduralConfig, SourceConfig
from datagen.generate import generate
from filters.config import RejectConfig
from filters.early import EarlyRejection
from jobs.pool import PoolConfig
from manifests.dataset import Dataset

SEED = 50_000_000


@dataclass(frozen=True)
class Config:
    """Time generation with and without a first look, one worker, in one run."""

    identities: int = 48
    rig: str = "gen3dface-48"
    resolution: int = 128


def timed(config: Config, out: str, rejection: EarlyRejection | None) -> tuple[Dataset, float]:
    source = SourceConfig(procedural=ProceduralConfig(0.25, ("janus", "haze")))
    job = GenerateConfig(out, source, config.identities, SEED, config.rig, resolution=config.resolution,
                         pool=PoolConfig(inline=True))  # fmt: skip
    started = time.monotonic()
    return generate(job, rejection), time.monotonic() - started


def main() -> None:
    config = tyro.cli(Config)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _, whole = timed(config, f"{folder}/whole", None)
        looked, some = timed(config, f"{folder}/some", EarlyRejection(RejectConfig("early")))
        rows = looked.all_identities.to_pylist()
        seconds = {
            int(i): s for shard in looked.committed() for i, s in looked.done(shard)["run"]["identity_seconds"].items()
        }
    kinds = [{d["kind"] for d in row["defects"]} for row in rows]
    filtered = [row["outcome"] == "filtered" for row in rows]
    janus = ["janus" in kind for kind in kinds]
    hit = sum(f and j for f, j in zip(filtered, janus, strict=True))
    sound = sum(f and not kind for f, kind in zip(filtered, kinds, strict=True))
    per = [
        [seconds[row["identity"]] for row, f in zip(rows, filtered, strict=True) if f == which]
        for which in (True, False)
    ]
    mean_rejected, mean_made = (sum(s) / max(len(s), 1) for s in per)
    print(f"{len(rows)} heads: {sum(janus)} Janus, {sum(filtered)} rejected ({hit} of them Janus, {sound} sound)")
    print(f"seconds per head: {mean_rejected:.2f} rejected, {mean_made:.2f} made")
    print(f"whole job: {whole:.0f} s without, {some:.0f} s with a first look ({1 - some / whole:.0%} saved)")


if __name__ == "__main__":
    main()
