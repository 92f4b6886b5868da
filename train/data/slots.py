"""Reusable shared memory in which worker processes hand over their tensors.

torch allocates new shared memory for each batch, which the kernel zeroes and maps page by page, in /dev/shm, which containers
keep small. This memory is mapped once, before the workers are forked, and a slot of it is used again as soon as nothing
refers to its last batch. It loads 1.33 times as many samples per second (docs/benchmarks.md, "Cached latents").
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
from train.data.batch_dataset import BatchDataset, Delivery

SIZE = 2 << 30
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
            self.memory = mmap.mmap(-1, slots * SIZE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE)
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
        return np.frombuffer(self.memory, np.uint8, SIZE, slot * SIZE)


class SlotContents(dict[str, Any]):
    """Contents of a delivery whose tensors lie in a slot; unpickling them gives the tensors as views of the slot."""

    def __init__(self, slots: Slots, slot: int, contents: dict[str, Any]):
        super().__init__(contents)
        self.serial, self.slot = slots.serial, slot
        memory, begin = torch.from_numpy(slots.array(slot)), 0
        for name, value in contents.items():
            if isinstance(value, Tensor) and begin + value.nbytes <= SIZE:
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
