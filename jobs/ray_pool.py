"""Runs units on Ray actors, as many as fit, on machines that come and go.

An item is blamed for the loss of its actor only if the actor's machine answers afterwards; a machine that is gone or drained is
blamed on none, and the unit runs again elsewhere. An actor that waits for a machine holds no unit, and is how an autoscaler
learns that more machines are wanted.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.pool import PoolConfig, local_cores, workers_that_fit
from jobs.trust import Machine, Trust
from jobs.units import PATIENCE, Event, NoCapacity, OutOfMemory, Unit, Worker, WorkerIsBroken, WorkersKeepDying
from jobs.work import Work
from jobs.worker_process import BEAT, RECYCLED, held_signals, reports
from manifests.errors import UserError, first_line

BEATS = 16
"""Number of actors up to which each reports once per BEAT; more of them report less often."""
GATHER, LONGEST_GATHER = 0.001, 0.25
"""Seconds per actor in which reports may gather before they are read, and the longest such time."""
ANSWERS = 10.0
"""Seconds within which a cluster must answer."""
STARTS = 3
"""Times that Ray is started on this machine; it gives its own processes 30 s, which a busy machine may exceed."""
LOOK = 5.0
"""Seconds between two looks at the machines of the cluster."""


def init_ray(address: str, log_to_driver: bool = False, **options: Any) -> None:
    """Connect to Ray, or start it if the address is local.

    Ray puts the working directory of the connecting process on the import path of its workers, where a train.py or filters.py
    of the user would be found first. So this connects from the folder that holds these packages.

    Raises:
        UserError: no cluster answers at the address, or one of other versions.
    """
    import ray

    def start() -> None:
        with chdir(Path(__file__).resolve().parents[1]):
            ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR, **options)

    if address == "local":
        for attempt in range(1, STARTS + 1):
            try:
                return start()
            except Exception as error:  # Ray's own has no class
                if "timed out during startup" not in str(error) or attempt == STARTS:
                    raise
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), timeout=ANSWERS).close()
        start()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the Ray cluster at {address} cannot be used ({first_line(error)}); it must run with the same versions of Ray and "
            "Python, and ray status shows whether it does"
        ) from error


@dataclass
class _Actor:
    """An actor on a machine, the unit that it runs, and its last event."""

    handle: Any
    machine: Machine
    unit: Unit | None = None
    last: Event | None = None
    items: int = 0
    # Looked up at the call, so that a test can replace the clock.
    heard: float = field(default_factory=lambda: time.monotonic())

    @property
    def host(self) -> str:
        """The machine as the ledger names it: two of one name are told apart by the node of Ray."""
        return f"{self.machine.host} ({self.machine.node[:8]})"


class RayPool:
    """Actors with one unit in flight each."""

    def __init__(self, work: Work, make_worker: Callable[[], Worker], config: PoolConfig):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.exceptions as errors

        self.ray, self.errors, self.config, self.work = ray, errors, config, work
        self.make_worker, self.trust = make_worker, Trust.of_driver(work.ledger)
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
            "concurrency_groups": {"control": 1},
        }
        self.Remote: Any = ray.remote(**options)(_Remote)
        self.answer: Any = ray.remote(num_cpus=0, max_retries=0)(_answer)
        self.starting: dict[Any, Any] = {}
        self.idle: list[_Actor] = []
        self.running: dict[Any, _Actor] = {}
        self.suspects: dict[Any, tuple[_Actor, str, bool]] = {}
        self.looked = self.progressed = time.monotonic()

    def run(self) -> None:
        """Run all units; after SIGTERM every worker finishes the item in hand and gives its unit back.

        Raises:
            UserError: no worker fits on the machines that Ray has, or a machine has other code or does not see the dataset.
            NoCapacity: nothing ran for `stall_minutes`, because no worker could be placed.
            WorkersKeepDying: workers die where no item can be the cause.
        """
        try:
            if self.capacity() == 0:
                has, config = self.ray.cluster_resources(), self.config
                raise UserError(
                    f"no worker fits: each takes --threads {config.threads} and --gpus-per-worker {config.gpus_per_worker:g}, "
                    f"Ray has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs"
                )
            with held_signals(signal.SIGINT, signal.SIGTERM) as caught:
                self._start_actors()
                while self.work.remains:
                    self._wait()
                    self._replace_stalled()
                    if signal.SIGINT in caught or (caught and not self.running):
                        raise KeyboardInterrupt
                    if caught:
                        self._stop()
                    else:
                        self._assign()
                        if time.monotonic() - self.looked > LOOK:
                            self._start_actors()
        finally:
            if self.own:
                self.ray.shutdown()
            else:
                handles = [one.handle for one in (*self.idle, *self.running.values())]
                for handle in (*self.starting.values(), *handles):
                    self.ray.kill(handle)

    def capacity(self) -> int:
        """The number of workers that fit on the living machines, each on one of them."""
        has = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(workers_that_fit(self.config, one.get("CPU", 0), one.get("GPU", 0)) for one in has)

    def _start_actors(self) -> None:
        """Start as many actors as there is work for and as fit; of a requested number also those that must wait."""
        self.looked = time.monotonic()
        # Idle ones on a machine that is left out keep others from it, and do not count.
        idle = sum(one.host not in self.work.left_out for one in self.idle)
        there = len(self.starting) + idle + len(self.running)
        open_units = self.work.waiting + len(self.suspects) + len(self.running)
        if self.work.draining:  # one needs a whole machine, on which a new actor might be placed
            open_units = 0
        for _ in range(min(self.config.workers or self.capacity(), open_units) - there):
            handle = self.Remote.remote(self.make_worker)
            self.starting[handle.hello.remote(self.trust)] = handle
        if self.running or self.suspects or not self.work.waiting or not self.work.gate.is_open:
            self.progressed = self.looked
        elif self.looked - self.progressed > 60 * self.config.stall_minutes:
            raise NoCapacity(f"no worker could be placed for {self.config.stall_minutes:g} minutes; see ray status")

    def _stop(self) -> None:
        """Let every actor finish its item; the rest of its unit is given back. Those that have no unit are not needed."""
        for one in self.running.values():
            one.handle.stop.options(concurrency_group="control").remote()

    def _wait(self) -> None:
        """Handle what has arrived; waits for a second if nothing has."""
        refs = [*self.running, *self.starting, *self.suspects]
        if not refs:
            time.sleep(1.0)
            return
        ready, _ = self.ray.wait(refs, num_returns=1, timeout=1.0, fetch_local=False)
        # All that are ready, because one call for each would always serve the first ones first. A look at all actors costs as
        # much as the reports of several, so some more may arrive before.
        if ready and len(refs) > 1:
            time.sleep(min(GATHER * len(refs), LONGEST_GATHER))
            ready, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in ready:
            if ref in self.running:
                self._advance(ref)
            elif ref in self.starting:
                self._started(ref)
            elif ref in self.suspects:
                self._judge(ref)

    def _assign(self) -> None:
        """Give idle actors units; one on a machine that gets none at the moment stays idle, and keeps others from it."""
        waiting, lonely = [], set()
        for one in reversed(self.idle):
            unit = self.work.next(one.host)
            if unit is None:
                waiting.append(one)
                continue
            beat = BEAT * max(1.0, len(self.running) / BEATS)
            one.unit, one.last, one.heard = unit, None, time.monotonic()
            # The actor waits while one report is unread, so the last one names the item at which it died.
            options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
            self.running[one.handle.run.options(**options).remote(unit, beat)] = one
            if self.work.draining == one.host:  # what idle workers hold in memory is missing to this one
                lonely.add(one.host)
        for one in [one for one in waiting if one.host in lonely]:
            self.ray.kill(one.handle)
        self.idle = [one for one in waiting[::-1] if one.host not in lonely]

    def _started(self, ref: Any) -> None:
        handle = self.starting.pop(ref)
        try:
            self.idle.append(_Actor(handle, self.ray.get(ref)))
        except self.errors.RayTaskError as error:
            raise error.cause from None
        except self.errors.RayError as error:
            # Its machine was lost before it began, and another takes its place at the next look; but an actor that cannot be
            # made here can be made nowhere.
            if getattr(error, "actor_init_failed", False):
                raise WorkersKeepDying(f"a worker cannot start: {str(error).strip().splitlines()[-1]}") from None

    def _advance(self, stream: Any) -> None:
        one = self.running[stream]
        assert one.unit is not None
        try:
            events = self.ray.get(next(stream))
        except StopIteration:
            del self.running[stream]
            self._finished(one, one.unit)
        except self.errors.RayTaskError as error:
            if not isinstance(error.cause, WorkerIsBroken):
                raise error.cause from None
            self._lose(stream, f"broke ({error.cause})", isinstance(error.cause, OutOfMemory))
        except self.errors.OutOfMemoryError:
            self._lose(stream, "ran out of memory", is_memory=True)
        except self.errors.RayError as error:
            self._lose(stream, "" if getattr(error, "preempted", False) else "died")
        else:
            one.heard = time.monotonic()
            for event in events:
                one.last = event
                one.items += event.ends_item
                self.work.reported(event, one.host)
            if not events:
                self._lose(stream, "")

    def _finished(self, one: _Actor, unit: Unit) -> None:
        self.work.finished(unit, one.host)
        one.unit = None
        for stream in [stream for stream, other in self.running.items() if not self.work.is_open(_unit(other))]:
            self._lose(stream, "")
        if one.items >= RECYCLED:
            self.ray.kill(one.handle)
        else:
            self.idle.append(one)

    def _replace_stalled(self) -> None:
        now, limit = time.monotonic(), 60 * self.config.stall_minutes
        running = list(self.running.items())
        for stream in [stream for stream, one in running if now - one.heard > limit * (1 if one.last else PATIENCE)]:
            self._lose(stream, f"fell silent for {self.config.stall_minutes:g} minutes")

    def _lose(self, stream: Any, cause: str, is_memory: bool = False) -> None:
        """Remove an actor; without a cause nothing is blamed, otherwise its machine is asked whether it is there."""
        one = self.running.pop(stream)
        self.ray.kill(one.handle)
        if not cause:
            self.work.given_back(_unit(one), one.host)
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        asked = self.answer.options(scheduling_strategy=On(one.machine.node, soft=False)).remote()
        self.suspects[asked] = one, cause, is_memory

    def _judge(self, asked: Any) -> None:
        """Count the loss if the machine has answered; otherwise it is gone, and the actor with it."""
        one, cause, is_memory = self.suspects.pop(asked)
        try:
            self.ray.get(asked)
        except self.errors.RayError:
            self.work.given_back(_unit(one), one.host)
        else:
            self.work.lost(_unit(one), one.last, cause, one.host, is_memory)
        self._start_actors()


def _unit(one: _Actor) -> Unit:
    assert one.unit is not None
    return one.unit


class _Remote:
    """A worker in a separate process."""

    def __init__(self, make_worker: Callable[[], Worker]):
        self.make_worker = make_worker
        self.worker: Worker | None = None
        self.stopping = False
        signal.signal(signal.SIGTERM, lambda *_: self.stop())

    def hello(self, trust: Trust) -> Machine:
        """The machine that this actor is on, if it has the driver's code and sees the driver's dataset."""
        import ray

        return trust.check(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """Give the unit back after the item in hand."""
        self.stopping = True

    def run(self, unit: Unit, beat: float) -> Iterator[tuple[Event, ...]]:
        """Run a unit; yields what `reports` does."""
        # Made here and not with the actor, so that its exceptions reach the driver unchanged.
        if self.worker is None:
            self.worker = self.make_worker()
        yield from reports(self.worker, unit, beat, lambda: self.stopping)


def _answer() -> None:
    """Runs where a machine answers."""
