"""Shards streamed from front to back: what is promised there, through the webdataset library."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import webdataset
from small import choose, members_of

from manifests.index import open_index
from train.data.sequential import SequentialConfig, open_sequential


def keys(pipeline, count: int) -> list[str]:
    return [sample["key"] for sample in islice(pipeline, count)]


def everything(dataset) -> list[str]:
    index = open_index(dataset)
    return [index.key(row) for row in range(len(index))]


def test_an_epoch_holds_every_view_once_with_its_bytes(make):
    dataset = make()
    pipeline, count = open_sequential(SequentialConfig(dataset.storage.url, members=("rgb", "normal"), buffer=5))
    samples = list(islice(pipeline, count))
    assert sorted(s["key"] for s in samples) == everything(dataset)
    for sample in samples[:4]:
        shard = dataset.plan.shard_of(sample["identity"])
        views = dataset.views(shard)
        row = int(np.flatnonzero(np.array(views.column("key").to_pylist()) == sample["key"])[0])
        for member in ("rgb", "normal"):
            assert sample[member] == members_of(dataset, shard, member)[row]


def test_epochs_and_seeds_differ_and_repeat_themselves(make):
    url = make(8, 2).storage.url

    def order(seed: int, epoch: int) -> list[str]:
        return keys(*open_sequential(SequentialConfig(url, seed=seed, buffer=6), epoch=epoch))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_ranks_have_equal_steps_and_share_no_shard(make):
    url = make(6, 2).storage.url
    ranks = [open_sequential(SequentialConfig(url), rank, 3) for rank in range(3)]
    assert len({count for _, count in ranks}) == 1
    seen = [set(keys(pipeline, count)) for pipeline, count in ranks]
    assert not seen[0] & seen[1] and not seen[1] & seen[2]


def test_a_rank_with_fewer_views_begins_again(make):
    url = make(5, 2).storage.url  # shards of 2, 2 and 1 identities
    counts = Counter()
    for rank in range(3):
        pipeline, count = open_sequential(SequentialConfig(url), rank, 3)
        assert count == 5
        counts.update(keys(pipeline, count))
    assert sum(counts.values()) == 15 and max(counts.values()) == 2


@pytest.mark.parametrize(("workers", "identities"), [(1, 6), (2, 6), (2, 2)])
def test_webdataset_s_loader_runs_it(make, workers, identities):
    """With more workers than shards too: those without a shard give nothing."""
    pipeline, count = open_sequential(SequentialConfig(make(identities).storage.url, buffer=0))
    loader = webdataset.WebLoader(pipeline, batch_size=None, num_workers=workers).with_epoch(count)
    assert len([sample["key"] for sample in loader]) == count


def test_a_selection_is_all_that_comes(make):
    dataset = make()
    dropped = {(identity, 1) for identity in range(6)} | {(2, view) for view in range(3)}
    choose(dataset, "some", dropped)
    wanted = [key for key in everything(dataset) if (int(key[:7]), int(key[-3:])) not in dropped]
    pipeline, count = open_sequential(SequentialConfig(dataset.storage.url, "some"))
    assert sorted(keys(pipeline, count)) == sorted(wanted)


def test_a_shard_that_ends_early_is_never_passed_over(make):
    """Cut between two samples, where a tar still looks whole."""
    dataset = make(2, 2)
    tar = dataset.storage.path(dataset.file(0, ".tar"))
    last = dataset.views(0).column("rgb").to_pylist()[-1]["offset"]
    with open(tar, "r+b") as file:
        file.truncate(last - 512)
    pipeline, count = open_sequential(SequentialConfig(dataset.storage.url, buffer=0))
    with pytest.raises(ValueError, match="ends after 5 of 6 views"):
        keys(pipeline, count + 1)


def test_more_ranks_than_shards_and_unknown_members_are_one_line(make):
    dataset = make(2, 2)
    with pytest.raises(ValueError, match="1 shards cannot be shared by 2 ranks"):
        open_sequential(SequentialConfig(dataset.storage.url), 0, 2)
    with pytest.raises(ValueError, match="give any of rgb"):
        SequentialConfig("x", members=("depth",))
