"""Runs units of work: workers take units, in this process or as Ray actors, and events come back.

A worker's `run` is a generator of events, so the same code is iterated here or streamed from an actor. An exception of a
worker stops the job, because workers handle errors of single items themselves. An actor that dies or reports nothing for too
long is replaced, and an item that was fatal to ATTEMPTS actors is given up: its unit runs again without it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from jobs.devices import usable_cores
from manifests.errors import UserError, check_ranges

ATTEMPTS = 3
"""Number of workers that an item may be fatal to before it is given up."""


@dataclass(frozen=True)
class Unit:
    """A shard-sized piece of work, without the items in `skipped`, which are recorded as failed with the reason given here."""

    index: int
    skipped: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """The progress of a worker: `done` of `total` steps of an item are complete, and the next one is `stage`; without an item,
    of the unit itself."""

    unit: int
    item: int | None
    stage: str
    done: int
    total: int


class Worker(Protocol):
    """Runs units, one after the other."""

    def run(self, unit: Unit) -> Iterator[Event]:
        """Run one unit and make its result durable; yields an event before every stage that may take long."""
        ...


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

    def __post_init__(self) -> None:
        check_ranges(
            self, workers=(0, 100_000), threads=(1, 1024), gpus_per_worker=(0, 64), stall_minutes=(0.001, 100_000)
        )
        if self.ray.startswith("ray://"):
            raise UserError(
                f"--ray is {self.ray!r}; Ray's client cannot stream results, so run the command on a node of the cluster "
                "with auto or host:6379"
            )


def local_cores(config: PoolConfig) -> int:
    """The number of cores that a local Ray is started with, larger than the real one if more workers are requested."""
    return max(config.workers * config.threads, usable_cores())


def workers_that_fit(config: PoolConfig, cores: int | float, gpus: int | float) -> int:
    """The number of workers that fit on some cores and GPUs, at most the requested number; 0 if none fits."""
    fit = int(cores // config.threads)
    if config.gpus_per_worker:
        fit = min(fit, int(gpus / config.gpus_per_worker + 1e-6))
    return min(config.workers, fit) if config.workers else fit


class WorkersKeepDying(RuntimeError):
    """Workers die repeatedly before their first item or while they commit a unit, so that no item can be the cause."""


class NoCapacity(RuntimeError):
    """No worker could be placed for a long time."""


class WorkerIsBroken(RuntimeError):
    """A worker cannot continue in this process, because its device has failed; another worker replaces it."""


def run(
    units: Iterable[int | Unit],
    make_worker: Callable[[], Worker],
    config: PoolConfig,
    on_event: Callable[[Event], None],
) -> None:
    """Run all units, given by their index or whole.

    An exception of a worker stops the others and is raised here; finished units are kept.
    """
    todo = deque(unit if isinstance(unit, Unit) else Unit(unit) for unit in units)
    if config.inline:
        worker = make_worker()
        for unit in todo:
            for event in worker.run(unit):
                on_event(event)
    elif todo:
        from jobs.ray_pool import RayPool

        RayPool(make_worker, config).run(todo, on_event)
