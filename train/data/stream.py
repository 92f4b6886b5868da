"""Streams a dataset as batches in an order that no number of ranks or workers changes, and resumes it exactly.

The order is cut into requests here; workers hold no state and turn a request into arrays. What was delivered is counted
here, from the order, never from what a batch looks like.
"""

import os
import shutil
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, repeat
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from manifests.cache import LookAhead, ShardCache
from manifests.errors import UserError
from manifests.order import START, GlobalBatch, Order, State
from train.batch import Batch
from train.data.config import FOREVER, LoaderConfig
from train.data.pixels import Encoded
from train.data.slots import HELD, Slots
from train.data.worker import Bad, Delivery, Worker

T = TypeVar("T")

AHEAD = 4
"""Batches whose remote shards are fetched before they are asked for."""
SHARED = Path("/dev/shm")
"""Where Linux keeps the shared memory of processes; containers are given 64 MB of it."""


class Loader:
    """Batches of one rank, from wherever the run is; made by `open_loader`."""

    def __init__(
        self,
        config: LoaderConfig,
        worker: Worker,
        order: Order,
        start: State,
        ranks: tuple[int, int],
        cache: ShardCache | None,
        left_out: dict[int, str],
    ):
        self.config, self.worker, self.order, self.cache = config, worker, order, cache
        self.rank, self.world = ranks
        self.left_out = left_out
        """Identities that cannot be sampled, and why."""
        self.bad: list[Bad] = []
        """Members that could not be had, as this rank met them."""
        self._start, self._cursor = start, START

    @property
    def parts(self) -> list["Loader"]:
        return [self]

    @property
    def samples(self) -> int:
        """Samples of an epoch, of all ranks together."""
        return self.order.samples

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same on every rank; with the tail exact the most an epoch can take."""
        return self.order.steps_per_epoch

    def __len__(self) -> int:
        """Steps that are left of all epochs."""
        if self.config.epochs == FOREVER:
            raise TypeError("this loader goes on forever; it has steps_per_epoch instead of a length")
        return self.order.steps(self.config.epochs, self._cursor)

    def __iter__(self) -> Iterator[Batch]:
        """The batches that are left, forever if epochs is 0; another iteration goes on where this one stopped.

        Raises:
            ValueError: more members are bad than the run tolerates.
            FileNotFoundError: a shard is no longer there.
            OSError: a worker was killed, for instance by the kernel for want of memory.
        """
        with LookAhead(self.cache) as look_ahead, lost_workers():
            for delivery in self._deliveries(self._requests(look_ahead)):
                if isinstance(delivery, Exception):
                    raise delivery
                self._note(delivery.bad)
                batch = delivery.batch()
                self._cursor = self.order.after(self._cursor)
                yield batch

    def state(self) -> State:
        """Where the run is: after the last batch that was delivered, on whatever rank."""
        return replace(self._start, epoch=self._cursor.epoch, position=self._cursor.position)

    def resume(self, text: str) -> str:
        """Continue from a saved state; returns an empty string, because all is exact.

        Raises:
            UserError: the state belongs to another dataset, selection, recipe or seed.
        """
        state = State.from_json(text)
        state.check(self._start)
        self._cursor = self.order.settle(state.cursor)
        return ""

    def _requests(self, look_ahead: LookAhead) -> Iterator[GlobalBatch]:
        """This rank's part of every batch that is left; their shards are fetched a few batches ahead."""
        cursor, waiting = self._cursor, deque[GlobalBatch]()
        for _ in repeat(None) if self.config.epochs == FOREVER else range(len(self)):
            waiting.append(self.order.batch_at(cursor).stripe(self.rank, self.world))
            cursor = self.order.after(cursor)
            look_ahead.want(np.unique(self.worker.shard_of(waiting[-1].samples)).tolist())
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _deliveries(self, requests: Iterator[GlobalBatch]) -> Iterator[Delivery | Exception]:
        config = self.config
        if config.workers and isinstance(self.worker.source, Encoded):
            return self._by_threads(requests)
        worker, asked = self.worker, requests
        if config.workers and config.start_method == "fork":  # which memory is shared by
            worker = Slots(self.worker, config.workers * config.prefetch)
            asked = worker.requests(requests)
        if config.workers and not (isinstance(worker, Slots) and worker.free):
            self._check_shared_memory()
        return iter(data_loader(worker, config, asked))

    def _check_shared_memory(self) -> None:
        """Raise UserError unless the batches that workers prepare fit into the shared memory; reads one to know its size."""
        first = self.worker[self.order.batch_at(self._cursor).stripe(self.rank, self.world)]
        if isinstance(first, Exception):
            raise first
        batch = sum(value.nbytes for value in first.contents.values() if isinstance(value, Tensor))
        needed, config = batch * (self.config.workers * self.config.prefetch + HELD), self.config
        if SHARED.exists() and needed > (free := shutil.disk_usage(SHARED).free):
            raise UserError(
                f"{SHARED} has {free / 1e6:.0f} MB free; {config.workers} workers that prepare {config.prefetch} batches of "
                f"{batch / 1e6:.1f} MB each need {needed / 1e6:.0f} MB. Enlarge it (docker run --shm-size "
                f"{-(-needed // 2**20)}m), lower --loader.workers or --loader.prefetch, or give --loader.start-method fork"
            )

    def _by_threads(self, requests: Iterator[GlobalBatch]) -> Iterator[Delivery | Exception]:
        """Reading leaves Python's lock alone, so processes would win nothing and copy every byte through a pipe."""
        pool = ThreadPoolExecutor(self.config.workers, "loader")
        ahead = (pool.submit(self.worker.__getitem__, request) for request in requests)
        waiting = deque(islice(ahead, self.config.workers * self.config.prefetch))
        try:
            while waiting:
                delivery = waiting.popleft().result()
                waiting.extend(islice(ahead, 1))
                yield delivery
        finally:
            pool.shutdown(cancel_futures=True)

    def _note(self, bad: tuple[Bad, ...]) -> None:
        """Record bad members, each once however often an epoch comes back to it."""
        self.bad += [one for one in bad if one not in self.bad]
        if len(self.bad) > self.config.tolerance:
            raise UserError(
                f"{self.bad[-1]}; that makes {len(self.bad)}, --loader.tolerance is {self.config.tolerance}"
            )


def data_loader(dataset: Dataset[Any], config: LoaderConfig, sampler: Iterable[Any] | None = None) -> DataLoader[Any]:
    """A DataLoader that delivers what its workers make as it is; the sampler gives what each of them is asked for."""
    pool = {"prefetch_factor": config.prefetch, "multiprocessing_context": config.start_method}
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=config.workers,
        worker_init_fn=_leave_signals_to_the_parent,
        pin_memory=config.pin_memory,
        generator=torch.Generator(),  # or torch would take its workers' seed from the run's own generator
        **(pool if config.workers else {}),
    )


@contextmanager
def lost_workers() -> Iterator[None]:
    """Report a killed worker in one line; torch raises it in whatever the main thread happens to do."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a process of the loader was killed ({str(error).splitlines()[0].rstrip('. ')}), most often for want of memory; "
            f"lower --loader.workers or --loader.prefetch, or enlarge {SHARED}"
        ) from error


def _as_it_is(value: T) -> T:
    return value


def _leave_signals_to_the_parent(worker: int) -> None:
    """Schedulers signal all processes of a run at once, and a trainer that saves where it is still needs its workers.

    They end when the parent itself tells them to.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
