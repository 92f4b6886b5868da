"""Training of a preset for the time that is left, on heads that the CPU cores make first; a later run resumes it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from datagen.config import GenerateConfig, MeshConfig
from datagen.generate import GenerateWorker, make_plan
from datagen.identity import rig_cameras
from datagen.rigs import find_rig
from filters.config import ScoreConfig
from filters.score import score
from gpu_parts.common import Budget, Table
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.dataset import Dataset
from manifests.plan import read_plan, write_plan
from manifests.storage import Storage

ROOT = Path(__file__).parents[2]


def preset(budget: Budget) -> Iterator[Table]:
    """A training preset on procedural heads, for the time that is left."""
    if not budget.toy and budget.left() < 75:
        print("   too little time is left to train")
        return
    cores, run = len(os.sched_getaffinity(0)), budget.folder / "run"
    config = GenerateConfig(
        str(budget.folder / "heads"),
        identities_per_shard=4,
        seed=30_000_000,
        rig="scatter-8" if budget.toy else "scatter-24",
        resolution=64,
        mesh=MeshConfig(64),
        pool=PoolConfig(inline=True),
    )
    table = Table(f"Training {budget.preset}", ("step", "seconds", "result"))
    begun = time.monotonic()
    heads = make_heads(config, 1 if budget.toy else cores, 0.0 if budget.toy else budget.left() / 4)
    yield table.add(f"heads made on {cores} cores", time.monotonic() - begun, f"{heads} heads")
    begun = time.monotonic()
    score(ScoreConfig(config.out, scorers=("arcface",), pool=PoolConfig(inline=True)))
    yield table.add("identities embedded", time.monotonic() - begun, f"{heads} heads")
    command = [sys.executable, "-m", "spinset", "train", "small" if budget.toy else budget.preset]
    command += ["--data", config.out, "--no-latents", "--out", str(run), "--device", budget.device]
    command += ["--samples", "8"] if budget.toy else ["--samples", "100000000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        process.wait(None if budget.toy else max(budget.left() - 20, 10))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # the run saves a checkpoint, from which the same command resumes
        process.wait(60)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "loss" in line)
    result = f"{last['samples']} scenes, {last['samples_per_s']:.0f}/s, waited {100 * last['data_wait']:.0f} % for data"
    yield table.add("trained", time.monotonic() - begun, f"{result}, loss {last['loss']:.3f}")


def make_heads(config: GenerateConfig, processes: int, duration: float) -> int:
    """Make as many heads as fit in about `duration` seconds, or take those of an earlier run; returns their number."""
    storage = Storage(config.out)
    if storage.exists("dataset.json"):
        plan = read_plan(storage)
    else:
        begun = time.monotonic()
        source = config.source.open("cpu")
        source.head(config.seed).render(rig_cameras(find_rig(config.rig), config.seed, 0), config.resolution)
        each = 2 * (time.monotonic() - begun)  # its mesh, normals and encoding take about as long again
        shards = max(1, int(processes * duration / each) // config.identities_per_shard)
        plan = make_plan(replace(config, identities=shards * config.identities_per_shard), source)
        write_plan(storage, plan)
    config = replace(config, identities=plan.identities)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(make_shard, repeat(config), Dataset(storage).pending()))
    return plan.identities


def make_shard(config: GenerateConfig, shard: int) -> None:
    """Make one shard in this process; a bare machine has no Ray."""
    storage = Storage(config.out)
    for _ in GenerateWorker(config, read_plan(storage), None).run(Unit(shard)):
        pass
