"""Runs units on Ray actors, as many as fit, and tells apart why one was lost.

An item is blamed for the loss of its actor only if the actor's machine answers afterwards; a machine that is gone or drained is
blamed on none, and the unit runs again elsewhere. An actor that waits for a machine holds no unit, and is how an autoscaler
learns that more machines are wanted.
"""

import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.pool import (
    ATTEMPTS,
    Event,
    NoCapacity,
    PoolConfig,
    Unit,
    Worker,
    WorkerIsBroken,
    WorkersKeepDying,
    local_cores,
    workers_that_fit,
)
from manifests.errors import UserError

BEAT = 1.0
"""Seconds after which an actor reports again within one stage of one item."""
LOOK = 5.0
"""Seconds between two looks at the machines of the cluster."""


def init_ray(address: str, log_to_driver: bool = False, **options: Any) -> None:
    """Connect to Ray, or start it if the address is local.

    Ray puts the working directory of the connecting process on the import path of its workers, where a train.py or filters.py
    of the user would be found first. So this connects from the folder that holds these packages.
    """
    import ray

    with chdir(Path(__file__).resolve().parents[1]):
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR, **options)


@dataclass
class _Running:
    """An actor, the node of Ray that it is on, the unit that it runs, and its last event."""

    actor: Any
    node: str
    unit: Unit
    last: Event | None = None
    # Looked up at the call, so that a test can replace the clock.
    heard: float = field(default_factory=lambda: time.monotonic())


class RayPool:
    """Actors with one unit in flight each; the driver decides which units run again."""

    def __init__(self, make_worker: Callable[[], Worker], config: PoolConfig):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.exceptions as errors

        self.ray, self.errors, self.config, self.make_worker = ray, errors, config, make_worker
        self.own = not ray.is_initialized()
        if self.own and config.ray == "local":
            init_ray("local", num_cpus=local_cores(config), include_dashboard=False)
        elif self.own:
            init_ray(config.ray)
        options = {
            "num_cpus": config.threads,
            "num_gpus": config.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self.Actor: Any = ray.remote(**options)(_Actor)
        self.answer: Any = ray.remote(num_cpus=0, max_retries=0)(_answer)
        self.todo: deque[Unit] = deque()
        self.starting: dict[Any, Any] = {}
        self.idle: list[tuple[Any, str]] = []
        self.running: dict[Any, _Running] = {}
        self.suspects: dict[Any, tuple[_Running, str]] = {}
        self.deaths: Counter[tuple[int, int | None]] = Counter()
        self.looked = self.progressed = time.monotonic()

    def run(self, units: deque[Unit], on_event: Callable[[Event], None]) -> None:
        """Run all units.

        Raises:
            UserError: no worker fits on the machines that Ray has.
            NoCapacity: nothing ran for `stall_minutes`, because no worker could be placed.
            WorkersKeepDying: workers die where no item can be the cause.
        """
        self.todo = units
        try:
            if self.capacity() == 0:
                has, config = self.ray.cluster_resources(), self.config
                raise UserError(
                    f"no worker fits: each takes --threads {config.threads} and --gpus-per-worker {config.gpus_per_worker:g}, "
                    f"Ray has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs"
                )
            with _held_interrupts() as interrupted:
                self._start_actors()
                while self.todo or self.running or self.suspects:
                    self._wait(on_event)
                    self._replace_stalled()
                    if time.monotonic() - self.looked > LOOK:
                        self._start_actors()
                    if interrupted():
                        raise KeyboardInterrupt
        finally:
            if self.own:
                self.ray.shutdown()
            else:
                working = [work.actor for work in self.running.values()]
                for actor in [*self.starting.values(), *(actor for actor, _ in self.idle), *working]:
                    self.ray.kill(actor)

    def capacity(self) -> int:
        """The number of workers that fit on the living machines, each on one of them."""
        has = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(workers_that_fit(self.config, one.get("CPU", 0), one.get("GPU", 0)) for one in has)

    def _start_actors(self) -> None:
        """Start as many actors as there is work for and as fit; of a requested number also those that must wait."""
        self.looked = time.monotonic()
        there = len(self.starting) + len(self.idle) + len(self.running)
        wanted = min(self.config.workers or self.capacity(), len(self.todo) + len(self.suspects) + len(self.running))
        for _ in range(wanted - there):
            actor = self.Actor.remote(self.make_worker)
            self.starting[actor.hello.remote()] = actor
        if self.running or self.suspects:
            self.progressed = self.looked
        elif self.looked - self.progressed > 60 * self.config.stall_minutes:
            raise NoCapacity(f"no worker could be placed for {self.config.stall_minutes:g} minutes; see ray status")

    def _wait(self, on_event: Callable[[Event], None]) -> None:
        """Handle what has arrived; waits for a second if nothing has."""
        refs = [*self.running, *self.starting, *self.suspects]
        if not refs:
            time.sleep(min(LOOK, 1.0))
            return
        ready, _ = self.ray.wait(refs, num_returns=1, timeout=1.0, fetch_local=False)
        # All that are ready, because one call for each would always serve the first ones first.
        if ready and len(refs) > 1:
            ready, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in ready:
            if ref in self.running:
                self._advance(ref, on_event)
            elif ref in self.starting:
                self._started(ref)
            else:
                self._judge(ref)
        self._assign()

    def _assign(self) -> None:
        while self.todo and self.idle:
            (actor, node), unit = self.idle.pop(), self.todo.popleft()
            # The actor waits while one event is unread, so the last event names the item at which it died.
            options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
            self.running[actor.run.options(**options).remote(unit)] = _Running(actor, node, unit)

    def _started(self, ref: Any) -> None:
        actor = self.starting.pop(ref)
        try:
            self.idle.append((actor, self.ray.get(ref)))
        except self.errors.RayError as error:
            # Its machine was lost before it began, and another takes its place at the next look; but an actor that cannot be
            # made here can be made nowhere.
            if getattr(error, "actor_init_failed", False):
                raise WorkersKeepDying(f"a worker cannot start: {str(error).strip().splitlines()[-1]}") from None

    def _advance(self, stream: Any, on_event: Callable[[Event], None]) -> None:
        work = self.running[stream]
        try:
            event = self.ray.get(next(stream))
        except StopIteration:
            del self.running[stream]
            self.idle.append((work.actor, work.node))
        except self.errors.RayTaskError as error:
            if not isinstance(error.cause, WorkerIsBroken):
                raise error.cause from None
            self._lose(stream, f"its worker broke {ATTEMPTS} times ({error.cause})")
        except self.errors.OutOfMemoryError:
            self._lose(stream, f"its worker ran out of memory {ATTEMPTS} times")
        except self.errors.RayError as error:
            preempted = getattr(error, "preempted", False)
            self._lose(stream, "" if preempted else f"its worker died {ATTEMPTS} times")
        else:
            work.last, work.heard = event, time.monotonic()
            on_event(event)

    def _replace_stalled(self) -> None:
        limit = time.monotonic() - 60 * self.config.stall_minutes
        for stream in [stream for stream, work in self.running.items() if work.heard < limit]:
            self._lose(stream, f"its worker fell silent {ATTEMPTS} times for {self.config.stall_minutes:g} minutes")

    def _lose(self, stream: Any, reason: str) -> None:
        """Remove an actor; without a reason nothing is blamed, otherwise its machine is asked whether it is there."""
        work = self.running.pop(stream)
        self.ray.kill(work.actor)
        if not reason:
            self.todo.appendleft(work.unit)
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        asked = self.answer.options(scheduling_strategy=On(work.node, soft=False)).remote()
        self.suspects[asked] = work, reason

    def _judge(self, asked: Any) -> None:
        """Blame the item if the machine has answered; after ATTEMPTS losses its unit runs without it."""
        work, reason = self.suspects.pop(asked)
        unit, item = work.unit, work.last.item if work.last else None
        self.deaths[unit.index, item] += self._has_answered(asked)
        if self.deaths[unit.index, item] >= ATTEMPTS:
            if work.last is None:
                raise WorkersKeepDying(
                    f"{ATTEMPTS} workers died while starting; run with --inline to see the traceback"
                )
            if item is None or item in unit.skipped:
                raise WorkersKeepDying(f"{ATTEMPTS} workers died at stage {work.last.stage} of unit {unit.index}")
            unit = replace(unit, skipped={**unit.skipped, item: f"{reason} at stage {work.last.stage}"})
        self.todo.appendleft(unit)
        self._start_actors()

    def _has_answered(self, asked: Any) -> bool:
        try:
            self.ray.get(asked)
        except self.errors.RayError:  # the machine is gone, and with it the actor
            return False
        return True


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


class _Actor:
    """A worker in a separate process."""

    def __init__(self, make_worker: Callable[[], Worker]):
        self.make_worker = make_worker
        self.worker: Worker | None = None

    def hello(self) -> str:
        """The node of Ray that this actor is on."""
        import ray

        return ray.get_runtime_context().get_node_id()

    def run(self, unit: Unit) -> Iterator[Event]:
        """Run a unit; yields the first event of every stage of every item, and the others at most once per BEAT."""
        # Made here and not with the actor, so that its exceptions reach the driver unchanged.
        if self.worker is None:
            self.worker = self.make_worker()
        stage, sent = None, 0.0
        for event in self.worker.run(unit):
            now = time.monotonic()
            if (event.item, event.stage) != stage or now - sent >= BEAT or event.done == event.total:
                stage, sent = (event.item, event.stage), now
                yield event


def _answer() -> None:
    """Runs where a machine answers."""
