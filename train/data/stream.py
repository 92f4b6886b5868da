"""Loads a dataset as batches, in an order that does not depend on the number of ranks and workers, and resumes it exactly.

The loader cuts the order into requests, which workers without state turn into batches. Its position is counted in the order
when a batch is delivered. Worker processes hand over their tensors in reusable shared memory: torch allocates new memory for
each batch, which the kernel zeroes and maps page by page, in /dev/shm, which containers keep small. Slots are mapped once,
before the workers are forked, and one is used again as soon as nothing refers to its last batch. It loads 1.33 times as many
samples per second (docs/benchmarks.md, "Cached latents").
"""

import mmap
import os
import shutil
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice, repeat
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Dataset as Requests

from manifests.cache import LookAhead, ShardCache
from manifests.errors import UserError
from manifests.order import START, GlobalBatch, Order, State
from manifests.plan import Plan
from train.batch import Batch
from train.data.batch_dataset import BadMember, BatchDataset, Delivery
from train.data.config import FOREVER, LoaderConfig
from train.data.sources import EncodedSource

SLOT_BYTES = 2 << 30
"""Bytes of address space of a slot; memory is used for the pages that are written only."""
ALIGNMENT = 64
HELD = 2
"""Batches that a plain loop over the loader refers to: the last one, and the next one."""
NORESERVE = 0x4000
"""Linux's MAP_NORESERVE, which Python does not name."""

_serial = count()
_alive: weakref.WeakValueDictionary[int, "Slots"] = weakref.WeakValueDictionary()


class SlotTensor(NamedTuple):
    """Position, type and shape of a tensor in a slot."""

    begin: int
    dtype: torch.dtype
    shape: torch.Size

    def view_of(self, slot: Tensor) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return slot[self.begin : self.begin + size].view(self.dtype).view(self.shape)


class Slots(Requests):
    """A worker whose tensors arrive in slots; without a free slot that is large enough, torch sends them as usual."""

    def __init__(self, batch_dataset: BatchDataset, ahead: int):
        self.batch_dataset, self.serial, self.free = batch_dataset, next(_serial), list[int]()
        slots = ahead + HELD
        try:
            self.memory = mmap.mmap(-1, slots * SLOT_BYTES, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE)
        except OSError:  # the kernel does not overcommit memory
            return
        self.free.extend(range(slots))
        _alive[self.serial] = self

    def requests(self, requests: Iterator[GlobalBatch]) -> Iterator[tuple[GlobalBatch, int | None]]:
        """The requests, each with the number of a free slot, or None."""
        for request in requests:
            yield request, self.free.pop() if self.free else None

    def __getitem__(self, assigned: tuple[GlobalBatch, int | None]) -> Delivery | Exception:
        request, slot = assigned
        delivery = self.batch_dataset[request]
        if slot is None or isinstance(delivery, Exception):
            return delivery
        return replace(delivery, contents=SlotContents(self, slot, delivery.contents))

    def array(self, slot: int) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, SLOT_BYTES, slot * SLOT_BYTES)


class SlotContents(dict[str, Any]):
    """Contents of a delivery whose tensors lie in a slot; unpickling them gives the tensors as views of the slot."""

    def __init__(self, slots: Slots, slot: int, contents: dict[str, Any]):
        super().__init__(contents)
        self.serial, self.slot = slots.serial, slot
        memory, begin = torch.from_numpy(slots.array(slot)), 0
        for name, value in contents.items():
            if isinstance(value, Tensor) and begin + value.nbytes <= SLOT_BYTES:
                self[name] = tensor = SlotTensor(begin, value.dtype, value.shape)
                tensor.view_of(memory).copy_(value)
                begin += -(-value.nbytes // ALIGNMENT) * ALIGNMENT

    def __reduce__(self) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]:
        return _received, (self.serial, self.slot, dict(self))


def _received(serial: int, slot: int, contents: dict[str, Any]) -> dict[str, Any]:
    """The contents in the process that receives them; the slot is free again when its last tensor is deleted."""
    slots = _alive[serial]
    array = slots.array(slot)
    # The storage of every tensor refers to the array.
    weakref.finalize(array, slots.free.append, slot).atexit = False
    memory = torch.from_numpy(array)
    return {name: value.view_of(memory) if isinstance(value, SlotTensor) else value for name, value in contents.items()}


T = TypeVar("T")

FETCH_AHEAD = 4
"""Number of batches whose remote shards are fetched before their request is sent."""
SHARED_MEMORY = Path("/dev/shm")
"""File system of shared memory on Linux; containers have 64 MB of it by default."""


@dataclass(frozen=True, eq=False)
class DatasetFacts:
    """A dataset as a loader opened it."""

    url: str
    plan: Plan
    identities: Int64[np.ndarray, " i"]
    """Numbers of the identities that are loaded."""
    recogniser: str
    """SHA-256 of the weights that made the embeddings; empty if there are none, or if their table does not record it."""


class Loader:
    """Batches of one rank, from the position of the run on; made by `open_loader`."""

    def __init__(
        self,
        config: LoaderConfig,
        facts: DatasetFacts,
        batch_dataset: BatchDataset,
        order: Order,
        start: State,
        ranks: tuple[int, int],
        cache: ShardCache | None,
        left_out: dict[int, str],
    ):
        self.config, self.facts, self.batch_dataset, self.order = config, facts, batch_dataset, order
        self.cache = cache
        self.rank, self.world = ranks
        self.left_out = left_out
        """Identities that cannot be sampled, with the reasons."""
        self.bad: list[BadMember] = []
        """Damaged members, in the order in which this rank met them."""
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
        """Steps of an epoch, the same on every rank; with the tail exact, the largest number that an epoch can take."""
        return self.order.steps_per_epoch

    def __len__(self) -> int:
        """Remaining steps of all epochs."""
        if self.config.epochs == FOREVER:
            raise TypeError("this loader has no end; it has steps_per_epoch instead of a length")
        return self.order.steps(self.config.epochs, self._cursor)

    def __iter__(self) -> Iterator[Batch]:
        """The remaining batches, without end if epochs is 0; another iteration continues where this one stopped.

        Raises:
            DamagedData: more members are damaged than the run tolerates.
            MissingFile: a shard no longer exists.
            OSError: a worker was killed, for instance because memory ran out.
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
        """The position after the last batch that was delivered, the same on every rank."""
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
        """The part of this rank in every remaining batch; remote shards are fetched a few batches ahead."""
        cursor, waiting = self._cursor, deque[GlobalBatch]()
        for _ in repeat(None) if self.config.epochs == FOREVER else range(len(self)):
            waiting.append(self.order.batch_at(cursor).stripe(self.rank, self.world))
            cursor = self.order.after(cursor)
            look_ahead.want(np.unique(self.batch_dataset.shard_of(waiting[-1].samples)).tolist())
            if len(waiting) > FETCH_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _deliveries(self, requests: Iterator[GlobalBatch]) -> Iterator[Delivery | Exception]:
        config = self.config
        if config.workers and isinstance(self.batch_dataset.source, EncodedSource):
            return self._by_threads(requests)
        dataset, sampler = self.batch_dataset, requests
        if config.workers and config.start_method == "fork":  # slots are inherited by forked processes only
            dataset = Slots(self.batch_dataset, config.workers * config.prefetch)
            sampler = dataset.requests(requests)
        if config.workers and not (isinstance(dataset, Slots) and dataset.free):
            self._check_shared_memory()
        return iter(data_loader(dataset, config, sampler))

    def _check_shared_memory(self) -> None:
        """Raise UserError unless the batches that workers prepare fit into shared memory; reads one to know its size."""
        first = self.batch_dataset[self.order.batch_at(self._cursor).stripe(self.rank, self.world)]
        if isinstance(first, Exception):
            raise first
        batch = sum(value.nbytes for value in first.contents.values() if isinstance(value, Tensor))
        needed, config = batch * (self.config.workers * self.config.prefetch + HELD), self.config
        if SHARED_MEMORY.exists() and needed > (free := shutil.disk_usage(SHARED_MEMORY).free):
            raise UserError(
                f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free; {config.workers} workers that prepare {config.prefetch} "
                f"batches of {batch / 1e6:.1f} MB each need {needed / 1e6:.0f} MB. Enlarge it (docker run --shm-size "
                f"{-(-needed // 2**20)}m), lower --loader.workers or --loader.prefetch, or give --loader.start-method fork"
            )

    def _by_threads(self, requests: Iterator[GlobalBatch]) -> Iterator[Delivery | Exception]:
        """Read in threads: reading releases the interpreter lock, and processes would copy every byte through a pipe."""
        pool = ThreadPoolExecutor(self.config.workers, "loader")
        ahead = (pool.submit(self.batch_dataset.__getitem__, request) for request in requests)
        waiting = deque(islice(ahead, self.config.workers * self.config.prefetch))
        try:
            while waiting:
                delivery = waiting.popleft().result()
                waiting.extend(islice(ahead, 1))
                yield delivery
        finally:
            pool.shutdown(cancel_futures=True)

    def _note(self, bad: tuple[BadMember, ...]) -> None:
        """Record damaged members, each of them once; raises DamagedData if there are more than the run tolerates."""
        self.bad += [one for one in bad if one not in self.bad]
        if len(self.bad) > self.config.tolerance:
            raise UserError(
                f"{self.bad[-1]}; that makes {len(self.bad)}, --loader.tolerance is {self.config.tolerance}"
            )


def data_loader(dataset: Dataset[Any], config: LoaderConfig, sampler: Iterable[Any] | None = None) -> DataLoader[Any]:
    """A DataLoader that neither batches nor collates; `sampler` gives the requests of a map-style dataset."""
    pool = {"prefetch_factor": config.prefetch, "multiprocessing_context": config.start_method}
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_as_delivered,
        num_workers=config.workers,
        worker_init_fn=_leave_signals_to_the_parent,
        pin_memory=config.pin_memory,
        generator=torch.Generator(),  # otherwise torch draws the seed of its workers from the global generator
        **(pool if config.workers else {}),
    )


@contextmanager
def lost_workers() -> Iterator[None]:
    """Report a killed worker as an OSError of one line; torch raises RuntimeError from any line of the main thread."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            f"a process of the loader was killed ({str(error).splitlines()[0].rstrip('. ')}), most often because memory "
            f"ran out; lower --loader.workers or --loader.prefetch, or enlarge {SHARED_MEMORY}"
        ) from error


def _as_delivered(value: T) -> T:
    return value


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a worker, unless the parent process sent the SIGTERM.

    Schedulers signal all processes of a run at once, and a trainer that saves its state still needs its workers.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
