"""Runs the units of a job: in this process, in worker processes of this machine, or as actors of Ray.

A worker's `run` is a generator of events, so the same code is iterated here or elsewhere. An exception of a worker stops the
job, because workers handle errors of single items themselves. A worker that dies or reports nothing for too long is replaced
(see jobs.work for what is blamed on an item).
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from jobs.devices import usable_cores
from jobs.ledger import Ledger
from jobs.units import Event, Unit, Worker
from jobs.work import Work
from manifests.errors import UserError, check_ranges

SCHEDULERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"),
    ("SKYPILOT_JOB_RANK", "", "SKYPILOT_NUM_JOBS"),
    ("JOB_COMPLETION_INDEX", "", ""),
)
"""Variables of schedulers: the index of a process, the first index, and how many there are."""


@dataclass(frozen=True)
class PoolConfig:
    """Workers and where they run."""

    workers: int = 0
    """Number of worker processes; 0 starts as many as the cores allow."""
    threads: int = 1
    """Number of threads of each worker. The bytes of a dataset may depend on it, but never on the number of workers."""
    inline: bool = False
    """Run everything in this process, one shard after the other, for debugging."""
    ray: str = "local"
    """Address of a running Ray cluster, such as auto or host:6379; local starts one on this machine."""
    gpus_per_worker: float = 0.0
    """Share of a GPU that each worker takes, such as 1, 0.5 or 0.25; 0 gives workers no GPU."""
    stall_minutes: float = 30.0
    """Minutes after which a worker that reports nothing is replaced."""
    part: str = ""
    """Part of a job array, such as 3/16 for the fourth of 16 processes, or auto, which reads the variables of Slurm,
    Kubernetes or SkyPilot. Workers are processes of this machine, without Ray; a part that ends early helps the others."""

    max_disk: float = 1.0
    """Share of the disk of a local OUT above which no shard is begun until there is space again, such as 0.9."""

    def __post_init__(self) -> None:
        limits = {"stall_minutes": (0.001, 100_000), "max_disk": (0.01, 1)}
        check_ranges(self, workers=(0, 100_000), threads=(1, 1024), gpus_per_worker=(0, 64), **limits)
        if self.ray.startswith("ray://"):
            raise UserError(
                f"--ray is {self.ray!r}; Ray's client cannot stream results, so run the command on a node of the cluster "
                "with auto or host:6379"
            )
        if self.part and self.ray != "local":
            raise UserError(f"--part runs workers of this machine, without Ray; leave out --ray {self.ray}")
        _ = self.begin

    @property
    def begin(self) -> float:
        """Where among the units this process begins, in [0, 1)."""
        return begin_of_part(self.part, os.environ) if self.part else 0.0


def local_cores(config: PoolConfig) -> int:
    """The number of cores that a local Ray is started with, larger than the real one if more workers are requested."""
    return max(config.workers * config.threads, usable_cores())


def workers_that_fit(config: PoolConfig, cores: int | float, gpus: int | float) -> int:
    """The number of workers that fit on some cores and GPUs, at most the requested number; 0 if none fits."""
    fit = int(cores // config.threads)
    if config.gpus_per_worker:
        fit = min(fit, int(gpus / config.gpus_per_worker + 1e-6))
    return min(config.workers, fit) if config.workers else fit


def begin_of_part(part: str, environ: Mapping[str, str]) -> float:
    """Where among the units a part begins, in [0, 1): at I/N, and for an index alone at the next free middle.

    Kubernetes tells a process its index and not how many there are; halves, quarters and so on spread any number.

    Raises:
        UserError: it is neither I/N nor auto, or there is no such variable.
    """
    if part == "auto":
        for variable, first, count in SCHEDULERS:
            if variable in environ:
                index, total = int(environ[variable]) - int(environ.get(first, 0)), int(environ.get(count, 0))
                return index / total if 0 <= index < total else int(f"{index:b}"[::-1], 2) / 2 ** len(f"{index:b}")
        raise UserError(
            f"--part auto needs one of {', '.join(one[0] for one in SCHEDULERS)}; give I/N instead, such as 0/4"
        )
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"--part is {part!r}; it must be auto or I/N with I from 0 to N - 1, such as 0/4")
    return int(found[1]) / int(found[2])


def run(
    units: Iterable[int | Unit],
    make_worker: Callable[[], Worker],
    config: PoolConfig,
    on_event: Callable[[Event], None],
    ledger: Ledger,
) -> None:
    """Run all units, given by their index or whole, except those that another driver of the same job finishes.

    An exception of a worker stops the others and is raised here; finished units are kept.
    """
    todo = [unit if isinstance(unit, Unit) else Unit(unit) for unit in units]
    begin = int(len(todo) * config.begin)
    if not todo:
        return
    with ledger:
        if others := ledger.others():
            what = "other command is" if len(others) == 1 else "other commands are"
            print(
                f"{len(others)} {what} at work on {ledger.storage.url}; shards that are left are shared",
                file=sys.stderr,
            )
        work = Work([*todo[begin:], *todo[:begin]], ledger, on_event, config.max_disk)
        if config.inline:
            from jobs.worker_process import run_inline

            run_inline(work, make_worker)
        elif config.part:
            from jobs.process_pool import ProcessPool

            ProcessPool(work, make_worker, config).run()
        else:
            from jobs.ray_pool import RayPool

            RayPool(work, make_worker, config).run()
