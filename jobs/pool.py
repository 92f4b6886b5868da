"""Runs units of work: workers take units, in this process or as Ray actors, and events come back.

A worker's `run` is a generator of events, so the same code is iterated here or streamed from an actor. An exception of a
worker stops the job, because workers handle errors of single items themselves. The driver replaces an actor that dies or
reports nothing for too long, and gives up an item that was fatal to ATTEMPTS actors: its unit runs again without it.
"""

import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

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
    return max(config.workers * config.threads, os.cpu_count() or 1)


def workers_that_fit(config: PoolConfig, cores: int | float, gpus: int | float) -> int:
    """The number of workers that fit on some cores and GPUs, at most the requested number; 0 if none fits."""
    fit = int(cores // config.threads)
    if config.gpus_per_worker:
        fit = min(fit, int(gpus / config.gpus_per_worker + 1e-6))
    return min(config.workers, fit) if config.workers else fit


class WorkersKeepDying(RuntimeError):
    """Workers die repeatedly before their first item or while they commit a unit, so that no item can be the cause."""


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
        _RayPool(make_worker, config, len(todo)).run(todo, on_event)


def init_ray(address: str, log_to_driver: bool = False, **options: Any) -> None:
    """Connect to Ray, or start it if the address is local.

    Ray puts the working directory of the connecting process on the import path of its workers, where a train.py or filters.py
    of the user would be found first. So this connects from the folder that holds these packages.
    """
    import ray

    with chdir(Path(__file__).resolve().parents[1]):
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR, **options)


class _RayPool:
    """Actors with one unit in flight each; the driver decides which units run again."""

    def __init__(self, make_worker: Callable[[], Worker], config: PoolConfig, units: int):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.exceptions as errors

        self.ray, self.config, self.make_worker = ray, config, make_worker
        if config.ray == "local":
            cores = local_cores(config)
            init_ray("local", num_cpus=cores, include_dashboard=False)
        else:
            init_ray(config.ray)
        self.count = min(units, self._capacity())
        options = {
            "num_cpus": config.threads,
            "num_gpus": config.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self.Actor = ray.remote(**options)(_Actor)
        self.deaths: Counter[tuple[int, int | None]] = Counter()
        self.failed = errors.RayTaskError
        # A worker dies of a crash, with its node, or by Ray's memory monitor.
        self.lost = (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError)

    def _capacity(self) -> int:
        """The number of workers to start; one that does not fit would wait forever and be replaced as stalled."""
        has, config = self.ray.cluster_resources(), self.config
        fit = workers_that_fit(config, has.get("CPU", 0), has.get("GPU", 0))
        if fit == 0:
            self.ray.shutdown()
            found = f"{has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs"
            raise UserError(
                f"no worker fits: each takes --threads {config.threads} and --gpus-per-worker "
                f"{config.gpus_per_worker:g}, Ray has {found}"
            )
        return fit

    def run(self, todo: deque[Unit], on_event: Callable[[Event], None]) -> None:
        running: dict[Any, _Running] = {}
        try:
            with _held_interrupts() as interrupted:
                for _ in range(self.count):
                    self._start(running, self.Actor.remote(self.make_worker), todo.popleft())
                while running:
                    ready, _ = self.ray.wait(list(running), num_returns=1, timeout=1.0)
                    for stream in ready:
                        self._advance(running, stream, todo, on_event)
                    self._replace_stalled(running)
                    if interrupted():
                        raise KeyboardInterrupt
        finally:
            self.ray.shutdown()

    def _start(self, running: "dict[Any, _Running]", actor: Any, unit: Unit) -> None:
        # The actor waits while one event is unread, so the last event names the item at which it died.
        stream = actor.run.options(num_returns="streaming", _generator_backpressure_num_objects=1).remote(unit)
        running[stream] = _Running(actor, unit)

    def _advance(
        self, running: "dict[Any, _Running]", stream: Any, todo: deque[Unit], on_event: Callable[[Event], None]
    ) -> None:
        work = running[stream]
        try:
            event = self.ray.get(next(stream))
        except StopIteration:
            del running[stream]
            if todo:
                self._start(running, work.actor, todo.popleft())
        except self.failed as error:
            if not isinstance(error.cause, WorkerIsBroken):
                raise error.cause from None
            self._replace(running, stream, f"its worker broke {ATTEMPTS} times ({error.cause})")
        except self.lost:
            self._replace(running, stream, f"its worker died {ATTEMPTS} times")
        else:
            work.last, work.heard = event, time.monotonic()
            on_event(event)

    def _replace_stalled(self, running: "dict[Any, _Running]") -> None:
        limit = time.monotonic() - 60 * self.config.stall_minutes
        for stream in [stream for stream, work in running.items() if work.heard < limit]:
            reason = f"its worker fell silent {ATTEMPTS} times for {self.config.stall_minutes:g} minutes"
            self._replace(running, stream, reason)

    def _replace(self, running: "dict[Any, _Running]", stream: Any, reason: str) -> None:
        """Run the unit of a lost worker on a new one, without an item that was fatal to ATTEMPTS workers."""
        work = running.pop(stream)
        self.ray.kill(work.actor)
        unit, item = work.unit, work.last.item if work.last else None
        self.deaths[unit.index, item] += 1
        if self.deaths[unit.index, item] >= ATTEMPTS:
            if work.last is None:
                raise WorkersKeepDying(
                    f"{ATTEMPTS} workers died while starting; run with --inline to see the traceback"
                )
            if item is None or item in unit.skipped:
                raise WorkersKeepDying(f"{ATTEMPTS} workers died at stage {work.last.stage} of unit {unit.index}")
            unit = replace(unit, skipped={**unit.skipped, item: f"{reason} at stage {work.last.stage}"})
        self._start(running, self.Actor.remote(self.make_worker), unit)


@contextmanager
def _held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM, and yield a function that tells whether one came.

    Raised at once, they may be lost in one of Ray's destructors.
    """
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in signals}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Running:
    actor: Any
    unit: Unit
    last: Event | None = None
    # Looked up at the call, so that a test can replace the clock.
    heard: float = field(default_factory=lambda: time.monotonic())


class _Actor:
    """A worker in a separate process."""

    def __init__(self, make_worker: Callable[[], Worker]):
        self.make_worker = make_worker
        self.worker: Worker | None = None

    def run(self, unit: Unit) -> Iterator[Event]:
        # Made here and not with the actor, so that its exceptions reach the driver unchanged.
        if self.worker is None:
            self.worker = self.make_worker()
        yield from self.worker.run(unit)
