"""Measurements of spinset's loader alone: bytes read for a few of many views, and opening a large dataset."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import samples

from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import RandomK
from train.data.stream import Loader

BATCHES = 20


def multiview(out: Path) -> dict[str, Any]:
    """8 of 125 views at 512 px: what the system calls say was read, beside the sizes of the members delivered."""
    folder = out / "samples-512"
    if not folder.exists():
        scratch = folder.with_suffix(".tmp")
        samples.write_samples(scratch, 8, 125, 512, 4)
        scratch.rename(folder)
    kinds = {
        "rgb": {"members": ("rgb",), "random_background": 0},
        "rgb, normal": {"members": ("rgb", "normal"), "random_background": 0},
        "rgb, normal, half on colours": {"members": ("rgb", "normal")},
    }
    return {name: _bytes(open_loader(_config(folder, 8, 0, **kind))) for name, kind in kinds.items()}


def _bytes(loader: Loader) -> dict[str, int]:
    batches, reader = iter(loader), loader.batch_dataset.source.reader
    next(batches)
    read, needed = _read_so_far(), reader.needed
    for _ in range(BATCHES):
        next(batches)
    return {"needed": reader.needed - needed, "read": _read_so_far() - read}


def _read_so_far() -> int:
    """Bytes of all read calls of this process."""
    return int(Path("/proc/self/io").read_text().split()[1])


def large(out: Path, identities: str) -> dict[str, Any]:
    """Opening many identities of 125 views: the first time makes the index, later ones map it."""
    folder = out / f"large-{identities}"
    if not folder.exists():
        scratch = folder.with_suffix(".tmp")
        samples.write_large(scratch, int(identities), 125)
        scratch.rename(folder)
    dataset = folder / "large"
    (dataset / "index.safetensors").unlink(missing_ok=True)
    line = [sys.executable, __file__, "opening", str(dataset)]
    return {
        name: json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        for name in ("making the index", "with an index")
    }


def opening(folder: Path) -> dict[str, float]:
    """Seconds and peak memory up to the first batch of eight random views, in this fresh process."""
    begun = time.perf_counter()
    loader = open_loader(_config(folder, 16, 2, members=("rgb",), random_background=0))
    opened = time.perf_counter() - begun
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - begun
    del batches
    own, worker = (resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    views = len(loader.batch_dataset.subset.rows)
    return {"views": views, "opened": opened, "first": first, "own_mb": own, "worker_mb": worker}


def _config(folder: Path, batch: int, workers: int, **fields: Any) -> LoaderConfig:
    return LoaderConfig(str(folder), RandomK(8), batch=batch, workers=workers, as_uint8=True, **fields)


if __name__ == "__main__":
    task, folder, *more = sys.argv[1:]
    print(json.dumps({"multiview": multiview, "large": large, "opening": opening}[task](Path(folder), *more)))
