"""What a large dataset costs that has no pictures: 100,000 identities of 125 views, each measure in a fresh process.

python benchmarks/dataset_scale.py [--identities N] [--per-shard N] [--out DIR]
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
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Config:
    """Measure a large dataset without pictures."""

    identities: int = 100_000
    per_shard: int = 64
    out: str = ""
    """A new folder that is kept, 4 GB for 100,000 identities; a temporary one by default."""


def making(folder: str) -> Callable[[], Any]:
    from manifests.dataset import Dataset
    from manifests.index import open_index

    return lambda: open_index(Dataset(folder))


def order(folder: str) -> Callable[[], Any]:
    """Open a loader of single views, of which there are most, and draw the rows of its first batch."""
    from train.data.sampling import SingleView

    return lambda: _first_rows(folder, recipe=SingleView())


def multiview(folder: str) -> Callable[[], Any]:
    from train.data.sampling import MultiView

    return lambda: _first_rows(folder, recipe=MultiView())


def window(folder: str) -> Callable[[], Any]:
    from train.data.sampling import SingleView

    return lambda: _first_rows(folder, recipe=SingleView(), window=16)


def selected(folder: str) -> Callable[[], Any]:
    from train.data.sampling import SingleView

    return lambda: _first_rows(folder, recipe=SingleView(), selection="benchmark")


def _first_rows(folder: str, **options: Any) -> Any:
    from train.data.config import LoaderConfig
    from train.data.loader import open_loader

    loader = open_loader(LoaderConfig(folder, members=("rgb",), batch=256, **options))
    first = next(loader._requests(type("", (), {"want": lambda *_: None})()))
    return loader.batch_dataset.views(first.samples, first.epochs)


def selecting(folder: str) -> Callable[[], Any]:
    from filters.config import SelectConfig
    from filters.select import select

    return lambda: select(SelectConfig(folder, policy=f"{folder}/policy.json"))


def checking(folder: str) -> Callable[[], Any]:
    from manifests.dataset import Dataset
    from manifests.verify import verify

    return lambda: next(verify(Dataset(folder)), None)


def status(folder: str) -> Callable[[], Any]:
    from manifests.dataset import Dataset
    from manifests.status import summarise

    return lambda: summarise(Dataset(folder))


MEASURES = {
    "making the index": making,
    "opening it": making,
    "`spinset select`, 5 scores": selecting,
    "`spinset status`": status,
    "`spinset verify`": checking,
    "first batch of a loader of single views": order,
    "the same with a selection": selected,
    "the same with a window of 16 shards": window,
    "first batch of a loader of 8 views": multiview,
}


def measure(name: str, folder: str) -> None:
    """Print the seconds of a measure without its imports, and the peak memory of this process."""
    call = MEASURES[name](folder)
    begun, busy = time.perf_counter(), time.process_time()
    call()
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([seconds, busy, peak]))


def main() -> None:
    config = tyro.cli(Config)
    with tempfile.TemporaryDirectory() if not config.out else nullcontext(config.out) as folder:
        if not Path(folder, "policy.json").exists():
            from synthetic import POLICY, write_scores, write_shards

            Path(folder).mkdir(exist_ok=True)
            write_scores(write_shards(Path(folder), config.identities, config.per_shard))
            Path(folder, "policy.json").write_text(json.dumps(POLICY))
        print("| | seconds | of processors | peak memory, GB |\n|---|---|---|---|")
        for name in MEASURES:
            line = [sys.executable, __file__, "measure", name, folder]
            out = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout
            seconds, busy, peak = json.loads(out.splitlines()[-1])
            print(f"| {name} | {seconds:.2f} | {busy:.2f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1:2] == ["measure"] else main()
