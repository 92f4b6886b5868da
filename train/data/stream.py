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
from dataclasses import dataclass, replace
from itertools import islice, repeat
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tyro.conf import arg

from manifests import schema
from manifests.cache import LookAhead, ShardCache
from manifests.errors import UserError
from manifests.order import START, TAILS, GlobalBatch, Order, State
from train.data.batch import Batch
from train.data.pixels import Encoded
from train.data.sampling import Anchors, Arc, FrontBack, MultiView, RandomK, Ring, SingleView
from train.data.slots import HELD, Slots
from train.data.worker import Bad, Delivery, Worker

T = TypeVar("T")

FOREVER = 0
AHEAD = 4
"""Batches whose remote shards are fetched before they are asked for."""
SHARED = Path("/dev/shm")
"""Where Linux keeps the shared memory of processes; containers are given 64 MB of it."""


@dataclass(frozen=True)
class LoaderConfig:
    """What is loaded, in which order, and how."""

    data: Annotated[str, arg(prefix_name=False)]
    """Folder or address of the dataset."""
    recipe: SingleView | MultiView | RandomK | Arc | FrontBack | Anchors | Ring = SingleView()
    """What one sample is."""
    selection: Annotated[str, arg(prefix_name=False)] = ""
    """Load what this selection keeps; everything without one."""
    batch: int = 16
    """Samples of a step, of all ranks together."""
    members: tuple[str, ...] = ("rgb", "normal")
    """Any of rgb, normal and alpha."""
    latents: str = ""
    """Load the cached latents of the autoencoder in this folder in the place of pixels."""
    resolution: int = 0
    """Pixels of a side, a multiple of 8; as stored unless told."""
    random_background: float = 0.5
    """The share of samples that get one random colour behind all their views; the others are white."""
    control: bool = False
    """Add the pictures of another identity from the same views."""
    embeddings: str = ""
    """Add the mean embedding of each identity from this score table, such as arcface."""
    leave_out: bool = False
    """Leave out identities that the recipe cannot sample, and list them, instead of refusing to start."""
    seed: int = 0
    epochs: int = FOREVER
    """0 goes on forever."""
    tail: str = "drop"
    """What becomes of the last short batch of an epoch: drop, pad (with repeated samples, marked) or exact (the next
    epoch fills it)."""
    tolerance: int = 0
    """How many members may fail to read or decode before the run stops; the sample after a bad one takes its place."""
    workers: int = 2
    """Processes that read and decode, or threads if nothing is decoded; 0 does it in this one."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    start_method: str = "fork"
    """How workers start: fork, forkserver or spawn."""
    pin_memory: bool = False
    """Deliver images in page-locked memory."""
    as_uint8: bool = False
    """Deliver images as bytes from 0 to 255."""
    decode: bool = True
    """Otherwise deliver the members as they are stored."""
    cache: str = ""
    """A local folder for the shards of a remote dataset; byte ranges are read without it."""
    cache_gb: float = 100.0
    """How much it may hold."""
    window: int = 0
    """Shuffle within groups of this many shards, for a cache that cannot hold all of them; 0 shuffles everything."""
    blend: tuple[str, ...] = ()
    """Folders or addresses of further datasets of the same rig and resolution; each batch comes from one of all of them."""
    blend_weights: tuple[float, ...] = ()
    """Relative number of batches from --data and from each dataset of --loader.blend, in this order; equal without it."""
    sequential: bool = False
    """Stream whole shards, for object storage where random reads are slow. The guarantees are weaker: samples are shuffled
    within a buffer only, and a resumed run skips the remainder of its epoch and begins the next one."""
    buffer: int = 100
    """Number of samples among which --loader.sequential draws the next one, in each worker; 0 keeps the order of the shards."""

    def __post_init__(self) -> None:
        bounds = {
            "seed": 0,
            "batch": 1,
            "resolution": 0,
            "epochs": 0,
            "tolerance": 0,
            "workers": 0,
            "prefetch": 1,
            "window": 0,
            "buffer": 0,
        }
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise UserError(f"{_option(name)} is {getattr(self, name)}; it must be {least} or more")
        choices = {"tail": TAILS, "start_method": ("fork", "forkserver", "spawn")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"{_option(name)} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        images = tuple(name for name in schema.MEMBERS if name != "json" or not self.decode)
        if not self.members or set(self.members) - set(images) or len(set(self.members)) < len(self.members):
            raise UserError(f"--loader.members are {self.members}; give any of {', '.join(images)}, each once")
        if self.resolution % 8:
            raise UserError(f"--loader.resolution is {self.resolution}; it must be a multiple of 8")
        if not 0 <= self.random_background <= 1:
            raise UserError(f"--loader.random-background is {self.random_background:g}; it is a share from 0 to 1")
        if self.cache_gb <= 0:
            raise UserError(f"--loader.cache-gb is {self.cache_gb:g}; it must be more than 0")
        if self.control and not self.decode:
            raise UserError("--loader.control needs pictures that are decoded; drop --loader.no-decode")
        if self.blend_weights and (len(self.blend_weights) != 1 + len(self.blend) or min(self.blend_weights) <= 0):
            raise UserError(
                f"--loader.blend-weights are {self.blend_weights}; give one positive weight for --data and one for each of "
                f"the {len(self.blend)} datasets of --loader.blend"
            )
        if (self.blend or self.sequential) and self.epochs != FOREVER:
            option = "--loader.blend" if self.blend else "--loader.sequential"
            raise UserError(f"--loader.epochs is {self.epochs}; with {option} batches never end, leave it at 0")
        if self.sequential and self.latents:
            raise UserError(
                "--loader.sequential reads pictures out of shards; give --no-latents to encode them on the way"
            )
        for name in ("control", "tolerance", "window", "cache"):
            if self.sequential and getattr(self, name):
                raise UserError(f"{_option(name)} needs random reads; drop it, or --loader.sequential")


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


def _option(name: str) -> str:
    return f"--loader.{name.replace('_', '-')}"
