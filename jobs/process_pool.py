"""Runs units in worker processes of this machine, without Ray."""

import copy
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from threading import Thread
from typing import Any

from jobs.devices import count_gpus, oom_kills, usable_cores
from jobs.pool import PoolConfig, workers_that_fit
from jobs.units import PATIENCE, Event, OutOfMemory, Unit, Worker, WorkerIsBroken
from jobs.work import Work
from jobs.worker_process import BEAT, RECYCLED, held_signals, reports
from manifests.errors import UserError

HOST = socket.gethostname()


@dataclass
class _Process:
    """A worker process, and what it runs."""

    process: BaseProcess
    pipe: Any
    gpus: str
    unit: Unit | None = None
    last: Event | None = None
    items: int = 0
    heard: float = field(default_factory=lambda: time.monotonic())


class ProcessPool:
    """As many processes as were asked for or as the cores and GPUs allow."""

    def __init__(self, work: Work, make_worker: Callable[[], Worker], config: PoolConfig):
        self.work, self.make_worker, self.config = work, make_worker, config
        self.context = get_context("spawn")
        cores, gpus = usable_cores(), count_gpus() if config.gpus_per_worker else 0
        self.size = _fits(config, cores, gpus)
        if self.size == 0:
            raise UserError(
                f"no worker fits: each takes --threads {config.threads} and --gpus-per-worker {config.gpus_per_worker:g}, "
                f"this machine has {cores} cores and {gpus} GPUs"
            )
        self.free = [_visible_gpus(config.gpus_per_worker, k) for k in reversed(range(self.size))]
        self.workers: list[_Process] = []
        self.oom_kills = oom_kills()

    def run(self) -> None:
        """Run all units; after SIGTERM every worker finishes the item in hand and gives its unit back.

        Raises:
            WorkersKeepDying: workers die where no item can be the cause.
        """
        try:
            with held_signals(signal.SIGINT, signal.SIGTERM) as caught:
                while self.work.remains:
                    if signal.SIGINT in caught or (caught and not any(one.unit for one in self.workers)):
                        raise KeyboardInterrupt
                    if caught:
                        for one in self.workers:
                            one.process.terminate()  # SIGTERM, which a worker takes as this process does
                    else:
                        self._assign()
                    self._wait()
                    self._replace_stalled()
        finally:
            for one in self.workers:
                one.process.kill()
            for one in self.workers:
                one.process.join()

    def _assign(self) -> None:
        """Give every idle worker a unit, and start the workers that there is work for."""
        for one in list(self.workers):
            if one in self.workers and one.unit is None and (unit := self.work.next(HOST)):
                one.unit, one.last, one.heard = unit, None, time.monotonic()
                with suppress(OSError):  # it has just died, which its pipe tells
                    one.pipe.send(unit)
                if self.work.draining == HOST:  # what idle workers hold in memory is missing to this one
                    for other in [other for other in self.workers if other.unit is None]:
                        self._remove(other)
        idle = sum(one.unit is None for one in self.workers)
        if self.work.draining is None:  # otherwise one needs the whole machine
            for _ in range(min(len(self.free), self.work.waiting - idle)):
                self._start()

    def _start(self) -> None:
        gpus = self.free.pop()
        pipe, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(self.make_worker, theirs, gpus), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Process(process, pipe, gpus))

    def _wait(self) -> None:
        """Handle what has arrived; waits for a second if nothing has."""
        of: dict[Any, _Process] = {one.pipe: one for one in self.workers}
        if not of:
            time.sleep(1.0)
        for pipe in connection.wait(list(of), timeout=1.0):
            one = of[pipe]
            try:
                while one in self.workers and one.pipe.poll():
                    self._heard(one, one.pipe.recv())
            except (EOFError, ConnectionResetError):
                self._died(one)

    def _heard(self, one: _Process, message: Any) -> None:
        """Handle one message of a worker: events, an exception, or whether its unit is finished."""
        one.heard = time.monotonic()
        if isinstance(message, tuple):
            for event in message:
                one.last = event
                one.items += event.ends_item
                self.work.reported(event, HOST)
            return
        unit, one.unit = one.unit, None
        assert unit is not None
        if isinstance(message, WorkerIsBroken):
            one.unit = unit
            self._lose(one, f"broke ({message})", isinstance(message, OutOfMemory))
        elif isinstance(message, BaseException):
            raise message
        elif message:
            self.work.finished(unit, HOST)
            for other in [other for other in self.workers if other.unit and not self.work.is_open(other.unit)]:
                self._lose(other, "")
            if one.items >= RECYCLED:
                self._remove(one)
        else:
            self.work.given_back(unit, HOST)
            self._remove(one)

    def _died(self, one: _Process) -> None:
        one.process.join()
        code = one.process.exitcode or 0
        if code == -signal.SIGTERM:  # the machine has to go, and told the worker before it could take it
            self._lose(one, "")
            return
        is_memory = oom_kills() > self.oom_kills and code == -signal.SIGKILL
        self.oom_kills += is_memory
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._lose(one, "ran out of memory" if is_memory else cause, is_memory)

    def _replace_stalled(self) -> None:
        now, limit = time.monotonic(), 60 * self.config.stall_minutes
        silent = [one for one in self.workers if one.unit and now - one.heard > limit * (1 if one.last else PATIENCE)]
        for one in silent:
            self._lose(one, f"fell silent for {self.config.stall_minutes:g} minutes")

    def _lose(self, one: _Process, cause: str, is_memory: bool = False) -> None:
        """Remove a worker that was lost, or is not needed where no cause is given."""
        self._remove(one)
        if one.unit and cause:
            self.work.lost(one.unit, one.last, cause, HOST, is_memory)
        elif one.unit:
            self.work.given_back(one.unit, HOST)

    def _remove(self, one: _Process) -> None:
        self.workers.remove(one)
        one.process.kill()
        one.process.join()
        one.pipe.close()
        self.free.append(one.gpus)


def _fits(config: PoolConfig, cores: int, gpus: int) -> int:
    """The number of workers that fit; a GPU is shared by as many as its share goes into it, and none uses a part of two."""
    share = config.gpus_per_worker
    if share > 1 and share % 1:
        raise UserError(f"--gpus-per-worker is {share:g}; with --part it must be a whole number or at most 1")
    whole = int(1 / share + 1e-6) * share * gpus if 0 < share < 1 else gpus
    return workers_that_fit(config, max(cores, config.workers * config.threads), whole)


def _visible_gpus(share: float, worker: int) -> str:
    """The GPUs of a worker as CUDA_VISIBLE_DEVICES has them; empty if it has none of its own."""
    if not share:
        return ""
    seen = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count_gpus())))).split(",")
    if share < 1:
        return seen[worker // int(1 / share + 1e-6)]
    return ",".join(seen[worker * int(share) : (worker + 1) * int(share)])


def _serve(make_worker: Callable[[], Worker], pipe: Any, gpus: str) -> None:
    """The main function of a worker process: runs the units that it is sent, and sends what happens."""
    Thread(target=_end_with_parent, name="parent", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the driver ends its workers.
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    with held_signals(signal.SIGTERM) as caught:
        worker = None
        while True:
            unit = pipe.recv()
            try:
                worker = worker or make_worker()
                message: Any = True
                for events in reports(worker, unit, BEAT, lambda: bool(caught)):
                    message = bool(events)
                    if events:
                        pipe.send(events)
            except Exception as error:
                # Where it happened does not travel by itself.
                error.add_note(f"In a worker process:\n{traceback.format_exc()}")
                message = _portable(error)
            pipe.send(message)


def _portable(error: Exception) -> Exception:
    """An exception as it is, if it survives the way to another process, and otherwise its text."""
    try:
        ForkingPickler.dumps(error)
        return copy.copy(error)  # made anew from its arguments, as on the other side
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
