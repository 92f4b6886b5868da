"""Memory in which workers hand over their tensors, used again and again.

Fresh shared memory is zeroed and mapped page by page, which takes as long as decoding the pictures it is for, and it lies
in /dev/shm, which containers keep small. This memory is made once, before the workers are forked; a slot of it is free
again when nothing refers to what came in it any more.
"""

import mmap
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as Requests

from manifests.order import GlobalBatch
from train.data.worker import Delivery, Worker

SIZE = 2 << 30
"""Bytes of a slot: addresses alone, for memory is taken where something is written."""
ALIGNED = 64
HELD = 2
"""Batches that whoever iterates refers to: the last one, and the one that replaces it."""
NORESERVE = 0x4000
"""Linux's MAP_NORESERVE, which Python does not name."""

_serial = count()
_alive: weakref.WeakValueDictionary[int, "Slots"] = weakref.WeakValueDictionary()


class Placed(NamedTuple):
    """Where a tensor lies in a slot."""

    begin: int
    dtype: torch.dtype
    shape: torch.Size

    def within(self, slot: Tensor) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return slot[self.begin : self.begin + size].view(self.dtype).view(self.shape)


class Slots(Requests):
    """A worker whose tensors arrive in slots while some are free and large enough, and as torch has it otherwise."""

    def __init__(self, worker: Worker, ahead: int):
        self.worker, self.serial, self.free = worker, next(_serial), list[int]()
        slots = ahead + HELD
        try:
            self.memory = mmap.mmap(-1, slots * SIZE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE)
        except OSError:  # a kernel that promises no more addresses than it has memory
            return
        self.free.extend(range(slots))
        _alive[self.serial] = self

    def requests(self, requests: Iterator[GlobalBatch]) -> Iterator[tuple[GlobalBatch, int | None]]:
        """The requests, each with a slot if one is free."""
        for request in requests:
            yield request, self.free.pop() if self.free else None

    def __getitem__(self, asked: tuple[GlobalBatch, int | None]) -> Delivery | Exception:
        request, slot = asked
        delivery = self.worker[request]
        if slot is None or isinstance(delivery, Exception):
            return delivery
        return replace(delivery, contents=Filled(self, slot, delivery.contents))

    def array(self, slot: int) -> np.ndarray:
        return np.frombuffer(self.memory, np.uint8, SIZE, slot * SIZE)


class Filled(dict[str, Any]):
    """Contents that were written to a slot; another process gets them as they were."""

    def __init__(self, slots: Slots, slot: int, contents: dict[str, Any]):
        super().__init__(contents)
        self.serial, self.slot = slots.serial, slot
        memory, begin = torch.from_numpy(slots.array(slot)), 0
        for name, value in contents.items():
            if isinstance(value, Tensor) and begin + value.nbytes <= SIZE:
                self[name] = place = Placed(begin, value.dtype, value.shape)
                place.within(memory).copy_(value)
                begin += -(-value.nbytes // ALIGNED) * ALIGNED

    def __reduce__(self) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]:
        return _arrived, (self.serial, self.slot, dict(self))


def _arrived(serial: int, slot: int, contents: dict[str, Any]) -> dict[str, Any]:
    """The contents where they are received."""
    slots = _alive[serial]
    array = slots.array(slot)
    # Every tensor within refers to the array, by way of its storage.
    weakref.finalize(array, slots.free.append, slot).atexit = False
    memory = torch.from_numpy(array)
    return {name: value.within(memory) if isinstance(value, Placed) else value for name, value in contents.items()}
