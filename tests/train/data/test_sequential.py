"""Shards streamed from front to back: which samples come, on which rank, and after a resume."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from embeddings import write_embeddings
from small import choose, members_of

from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.index import open_index
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import MultiView, RandomK, SingleView
from train.data.sequential import SequentialLoader


def config_of(dataset: Dataset, **changes) -> LoaderConfig:
    plain = {"recipe": RandomK(2), "batch": 2, "members": ("rgb", "normal"), "workers": 0, "sequential": True}
    return LoaderConfig(dataset.storage.url, **{**plain, **changes})


def stream(dataset: Dataset, rank: int = 0, world: int = 1, **changes) -> SequentialLoader:
    loader = open_loader(config_of(dataset, **changes), rank, world)
    assert isinstance(loader, SequentialLoader)
    return loader


def numbers(loader, steps: int) -> list[int]:
    return [number for batch in islice(loader, steps) for number in batch.index.tolist()]


@pytest.mark.parametrize("recipe", [RandomK(2), MultiView(3, (0, 1)), SingleView()])
def test_samples_are_those_of_the_ordinary_loader(make, recipe):
    """In another order: the same views over the same backgrounds, and the same bytes decoded."""
    dataset = make()
    write_embeddings(dataset)
    changes = {"recipe": recipe, "random_background": 0.5, "embeddings": "arcface", "members": ("rgb", "alpha")}
    loader = stream(dataset, **changes)
    plain = open_loader(replace(config_of(dataset, **changes), sequential=False, batch=1, epochs=1))
    expected = {int(batch.index): batch for batch in plain}
    assert loader.samples == len(expected)
    found = [batch.part(slice(i, i + 1)) for batch in islice(loader, len(expected) // 2) for i in (0, 1)]
    assert sorted(int(sample.index) for sample in found) == sorted(expected)
    for sample in found:
        for name, value in vars(expected[int(sample.index)]).items():
            other = getattr(sample, name)
            assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name


def test_members_come_as_they_are_stored(make):
    dataset = make()
    changes = {"decode": False, "members": ("rgb", "json"), "recipe": SingleView(), "buffer": 0}
    batch = next(iter(stream(dataset, **changes)))
    shard = dataset.plan.shard_of(int(batch.identity[0]))
    for member in ("rgb", "json"):
        assert batch.data[member] == members_of(dataset, shard, member)[:2]


def test_shards_and_samples_are_shuffled_by_seed_and_epoch(make):
    dataset = make(12, 3)
    orders = {
        (seed, epoch): numbers(stream(dataset, seed=seed), 12)[6 * epoch :] for seed in (0, 1) for epoch in (0, 1)
    }
    assert numbers(stream(dataset), 6) == orders[0, 0][:12]
    assert len({tuple(order) for order in orders.values()}) == 4
    unshuffled = numbers(stream(dataset, buffer=0), 6)
    assert all(unshuffled[i : i + 3] == list(range(unshuffled[i], unshuffled[i] + 3)) for i in range(0, 12, 3))
    assert unshuffled != sorted(unshuffled)
    assert numbers(stream(dataset, buffer=100), 6) != unshuffled


def test_ranks_share_no_shard_of_an_epoch(make):
    dataset = make(6, 2)
    parts = [set(numbers(stream(dataset, rank, 3, batch=3, buffer=0), 2)) for rank in range(3)]
    assert all(len(part) == 2 for part in parts)
    assert set().union(*parts) == set(range(6))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch, of more workers than this machine has cores
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_the_shards_however_few(make, workers):
    """Two shards: with three workers, one begins with the next epoch."""
    dataset = make(4, 2)
    counted = Counter(numbers(stream(dataset, workers=workers, buffer=2), 20))
    assert sorted(counted) == list(range(4))
    assert sum(counted.values()) == 40
    assert min(counted.values()) > 5


def test_a_selection_is_all_that_comes(make):
    dataset = make()
    dropped = {(identity, 1) for identity in range(6)} | {(2, view) for view in range(3)}
    choose(dataset, "some", dropped)
    views = [
        (int(b.identity[i]), *b.view[i].tolist()) for b in islice(stream(dataset, selection="some"), 5) for i in (0, 1)
    ]
    assert {identity for identity, *_ in views} == {0, 1, 3, 4, 5}
    assert all(sorted(pair) == [0, 2] for _, *pair in views)


def test_a_resume_begins_the_next_epoch_and_says_so(make):
    dataset = make(12, 3)
    first = stream(dataset)
    assert first.state().epoch == 0
    numbers(first, 3)
    state = first.state().to_json()
    again, straight = stream(dataset), stream(dataset)
    assert "begins a new epoch: what was left of the last one is skipped" in again.resume(state)
    assert again.state().to_json() == state
    views = {int(b.index[i]): b.view[i].tolist() for b in islice(again, 6) for i in (0, 1)}
    assert sorted(views) == list(range(12))
    plain = open_loader(replace(config_of(dataset, recipe=RandomK(2), batch=1), sequential=False))
    second = {int(b.index): b.view[0].tolist() for b in list(islice(plain, 24))[12:]}
    assert views == second
    assert numbers(straight, 6) != list(views)


def test_states_of_other_runs_are_refused(make):
    dataset = make()
    state = stream(dataset).state().to_json()
    ordinary = open_loader(replace(config_of(dataset), sequential=False))
    for loader in (ordinary, stream(dataset, recipe=RandomK(3))):
        with pytest.raises(ValueError, match="saved with another recipe"):
            loader.resume(state)
    with pytest.raises(ValueError, match="saved with seed 0, this run has 1"):
        stream(dataset, seed=1).resume(state)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("between", [True, False])
def test_a_shard_that_ends_early_is_never_passed_over(make, workers, between):
    """Cut between two samples, where a tar still looks whole, or within one."""
    dataset = make(2, 2)
    tar = dataset.storage.path(dataset.file(0, ".tar"))
    last = dataset.views(0).column("rgb").to_pylist()[-1]["offset"]
    with open(tar, "r+b") as file:
        file.truncate(last - 512 if between else last + 100)
    says = "ends after 5 of 6 views" if between else "cannot be read beyond 4 of 6 views"
    with pytest.raises(DamagedData, match=rf"heads-000000\.tar {says}.*; run spinset repair"):
        numbers(stream(dataset, workers=workers), 10)


def test_a_picture_that_does_not_decode_is_named(make):
    dataset = make(2, 2)
    index = open_index(dataset)
    with open(dataset.storage.path(dataset.file(0, ".tar")), "r+b") as file:
        file.seek(int(index.offset["rgb"][4]))
        file.write(bytes(int(index.size["rgb"][4])))
    with pytest.raises(DamagedData, match=r"heads-000000\.tar, 0000001_v001\.rgb\.jpg does not decode"):
        numbers(stream(dataset, recipe=RandomK(3)), 10)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latents": "vae"}, "--loader.sequential reads pictures out of shards; give --no-latents"),
        ({"control": True}, "--loader.control needs random reads; drop it, or --loader.sequential"),
        ({"tolerance": 2}, "--loader.tolerance needs random reads"),
        ({"window": 2}, "--loader.window needs random reads"),
        ({"cache": "folder"}, "--loader.cache needs random reads"),
        ({"epochs": 1}, "--loader.epochs is 1; with --loader.sequential batches never end"),
        ({"buffer": -1}, "--loader.buffer is -1; it must be from 0 to 1000000000"),
    ],
)
def test_options_that_need_random_reads_are_refused(make, changes, says):
    with pytest.raises(ValueError, match=says):
        config_of(make(2, 2), **changes)


def test_more_ranks_than_shards_are_refused(make):
    with pytest.raises(ValueError, match=r"1 shards of .* cannot be shared by 2 ranks; drop --loader.sequential"):
        stream(make(2, 2), 0, 2)
