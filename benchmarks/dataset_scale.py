"""Seconds and memory that commands and loaders take on 100,000 identities of 125 views, without pictures.

    python benchmarks/dataset_scale.py [--identities N] [--per-shard N] [--out DIR]

makes the dataset, takes each measurement in a process of its own, and prints the table of docs/benchmarks.md. Seconds are those
of the work alone, without imports; "processor" counts all threads.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

Work = Callable[[], Any]


@dataclass(frozen=True)
class Config:
    """Measure a large dataset without pictures."""

    identities: int = 100_000
    """Number of identities, of 125 views each."""
    per_shard: int = 64
    """Identities per shard."""
    out: str = ""
    """A folder that is kept and used again, 5 GB for 100,000 identities; a temporary one by default."""


def index(folder: str) -> Work:
    from manifests.dataset import Dataset
    from manifests.index import open_index

    return lambda: open_index(Dataset(folder))


def select(folder: str) -> Work:
    from filters.config import SelectConfig
    from filters.select import select

    return lambda: select(SelectConfig(folder, policy=f"{folder}/policy.json"))


def use(folder: str) -> Work:
    from manifests.dataset import Dataset
    from manifests.index import open_index
    from manifests.selection import read_selection

    dataset = Dataset(folder)
    return lambda: open_index(dataset).select(read_selection(dataset, "benchmark"))


def status(folder: str) -> Work:
    from manifests.dataset import Dataset
    from manifests.status import summarise

    return lambda: summarise(Dataset(folder))


def verify(folder: str) -> Work:
    from manifests.dataset import Dataset
    from manifests.verify import verify

    return lambda: next(verify(Dataset(folder)), None)


def load(folder: str, views: int = 1, **options: Any) -> Work:
    from manifests.order import START
    from train.data.config import LoaderConfig
    from train.data.loader import open_loader
    from train.data.sampling import MultiView, SingleView

    config = LoaderConfig(
        folder, MultiView(views) if views > 1 else SingleView(), members=("rgb",), batch=256, **options
    )

    def first_batch() -> Any:
        loader = open_loader(config)
        batch = loader.order.batch_at(START)
        return loader.batch_dataset.views(batch.samples, batch.epochs)

    return first_batch


MEASURES = {
    "making the index": index,
    "opening it": index,
    "`spinset select`, 5 scores": select,
    "opening the index with that selection": use,
    "`spinset status`": status,
    "`spinset verify`": verify,
    "a loader of single views, to the rows of its first batch": load,
    "the same with that selection": partial(load, selection="benchmark"),
    "the same with a window of 16 shards": partial(load, window=16),
    "the same with samples of 8 views": partial(load, views=8),
}


def measure(name: str, folder: str) -> None:
    """Print the seconds and the processor seconds of a measurement, and the peak memory of this process."""
    work = MEASURES[name](folder)
    begun, busy = time.perf_counter(), time.process_time()
    work()
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([seconds, busy, peak]))


def make(folder: Path, identities: int, per_shard: int) -> None:
    from synthetic import POLICY, write_scores, write_shards

    write_scores(write_shards(folder, identities, per_shard))
    (folder / "policy.json").write_text(json.dumps(POLICY))


def main() -> None:
    config = tyro.cli(Config)
    with nullcontext(config.out) if config.out else tempfile.TemporaryDirectory() as folder:
        if not Path(folder, "policy.json").exists():  # written last
            make(Path(folder), config.identities, config.per_shard)
        Path(folder, "index.safetensors").unlink(missing_ok=True)
        print("| | seconds | processor, s | peak memory, GB |\n|---|---|---|---|")
        for name in MEASURES:
            line = [sys.executable, __file__, "measure", name, folder]
            out = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
            seconds, busy, peak = json.loads(out.splitlines()[-1])
            print(f"| {name} | {seconds:.2f} | {busy:.2f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["measure"] else main()
