"""Slots: tensors arrive as they were, stay as they are while anything refers to them, and their memory is used again."""

import mmap

import numpy as np
import pytest
import torch

from manifests.cache import LookAhead
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.stream import HELD, SLOT_BYTES, _alive


def batches(dataset, workers: int, epochs: int = 1):
    config = LoaderConfig(
        dataset.storage.url,
        batch=2,
        members=("rgb", "normal", "alpha"),
        workers=workers,
        epochs=epochs,
        prefetch=1,
    )
    return open_loader(config)


def same(one, two) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("index", "rgb", "normal", "alpha"))


def test_memory_is_used_again(make):
    """Every batch lies in the slots' own memory, and every slot is free again in the end."""
    numbers = []
    for batch in batches(make(), 2, epochs=3):
        (slots,) = _alive.values()
        start = np.frombuffer(slots.memory, np.uint8).ctypes.data
        numbers.append((batch.rgb.data_ptr() - start) // SLOT_BYTES)
    assert len(numbers) == 27
    assert set(numbers) <= set(range(2 + HELD))
    assert max(numbers.count(number) for number in set(numbers)) > 1
    del batch
    assert sorted(slots.free) == list(range(2 + HELD))


def test_what_is_kept_stays_as_it_is(make):
    """Even if only a view of it is kept, and whatever was let go of before."""
    dataset = make()
    plain = list(batches(dataset, 0, epochs=3))
    kept = {}
    for step, batch in enumerate(batches(dataset, 2, epochs=3)):
        assert same(batch, plain[step])
        if step % 2:
            kept[step] = batch.normal[1, 0]
        if step > 15:
            kept.pop(step - 15, None)
    assert all(torch.equal(view, plain[step].normal[1, 0]) for step, view in kept.items())


def test_a_caller_may_keep_all(make):
    dataset = make()
    everything = list(batches(dataset, 2, epochs=2))
    assert all(same(*pair) for pair in zip(everything, batches(dataset, 0, epochs=2), strict=True))


def test_writing_to_a_batch_changes_no_other(make):
    dataset = make()
    plain = list(batches(dataset, 0))
    for batch, expected in zip(batches(dataset, 2), plain, strict=True):
        assert same(batch, expected)
        for name in ("rgb", "normal", "alpha"):
            getattr(batch, name).fill_(7)


@pytest.mark.parametrize("size", [4096, 8192])
def test_what_does_not_fit_arrives_all_the_same(make, monkeypatch, size):
    monkeypatch.setattr("train.data.stream.SLOT_BYTES", size)
    dataset = make(identities=2)
    for pair in zip(batches(dataset, 1), batches(dataset, 0), strict=True):
        assert same(*pair)


def test_a_kernel_that_promises_no_memory_is_heeded(make, monkeypatch):
    original = mmap.mmap

    def refused(*arguments, **options):
        if "access" in options:  # of a file, as the index
            return original(*arguments, **options)
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr("train.data.stream.mmap.mmap", refused)
    dataset = make(identities=2)
    for pair in zip(batches(dataset, 1), batches(dataset, 0), strict=True):
        assert same(*pair)


def test_fields_of_all_kinds_arrive(make):
    class Kinds:
        lineage = ""

        def read(self, rows, background, members, keys):
            return {
                "rgb": torch.arange(rows.size).expand(2, rows.size).T.bool(),
                "normal": torch.tensor(1.5),
                "alpha": torch.empty(0, 3, dtype=torch.float64),
                "background": np.ones(2),
                "data": {"json": [b"{}"]},
            }

    loader = open_loader(LoaderConfig(make().storage.url, batch=4, workers=1, epochs=1), source=lambda *_: Kinds())
    for delivery in loader._deliveries(loader._requests(LookAhead(None))):
        own, plain = delivery.contents, Kinds().read(np.zeros((4, 1)), None, (), ())
        for name in ("rgb", "normal", "alpha"):
            assert torch.equal(own[name], plain[name]) and own[name].dtype == plain[name].dtype
        assert own["data"] == plain["data"] and own["background"].tolist() == [1, 1]
