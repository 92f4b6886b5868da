"""Reading members: the right bytes, few reads, next to nothing that was not asked for; from disks and object stores."""

import copy
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from small import members_of, small_plan, write_shard

from manifests import schema
from manifests.cache import LookAhead, ShardCache, tar_file
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.index import open_index
from manifests.plan import write_plan
from manifests.reader import Reader, merged_ranges
from manifests.storage import Storage


def reader_of(dataset: Dataset, cache: ShardCache | None = None) -> Reader:
    return Reader(dataset, open_index(dataset), cache)


def contents(dataset: Dataset, member: str) -> list[bytes]:
    return [data for shard in dataset.committed() for data in members_of(dataset, shard, member)]


def upload(dataset: Dataset, url: str) -> Dataset:
    remote = Storage(url)
    remote.fs.put(dataset.storage.root, remote.root, recursive=True)
    return Dataset(url)


def test_members_come_in_the_order_they_were_asked_for(make):
    dataset = make()
    reader = reader_of(dataset)
    rows = np.array([7, 0, 17, 7, 3])
    found = reader.read({"normal": rows, "rgb": rows[::-1], "json": rows[:0]})
    assert list(found) == ["normal", "rgb", "json"] and found["json"] == []
    assert found["normal"] == [contents(dataset, "normal")[r] for r in rows]
    assert found["rgb"] == [contents(dataset, "rgb")[r] for r in rows[::-1]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000), st.integers(0, 900)), min_size=1, max_size=40))
def test_ranges_cover_every_member_and_waste_little(members):
    members.sort()
    found = merged_ranges(*zip(*members, strict=True))
    assert [s.first for s in found] == [0, *(s.last for s in found[:-1])] and found[-1].last == len(members)
    for span in found:
        own = members[span.first : span.last]
        assert all(shard == span.shard and span.begin <= o and o + size <= span.end for shard, o, size in own)
        assert span.end - span.begin <= sum(size for *_, size in own) * 1.125


def test_neighbours_are_read_at_once():
    spans = merged_ranges([0, 0, 0, 0, 1], [512, 60_512, 121_024, 200_000, 200_512], [59_000, 59_900, 1_000, 10, 50])
    assert [(s.begin, s.end) for s in spans] == [(512, 122_024), (200_000, 200_010), (200_512, 200_562)]


def test_eight_of_125_views_read_hardly_more_than_their_bytes(tmp_path):
    """With all members the bytes between them are tar headers; pictures of noise are as large for their size as real ones."""
    storage, plan = Storage(tmp_path), small_plan(1, 1, resolution=64)
    write_plan(storage, plan)
    write_shard(storage, plan, 0, 125)
    for members in (("rgb",), ("rgb", "alpha", "normal")):
        reader = reader_of(Dataset(storage))
        for i in range(50):
            rows = np.random.default_rng(i).permutation(125)[:8]
            reader.read(dict.fromkeys(members, rows))
        assert 1 <= reader.fetched / reader.needed < 1.2


def test_a_reader_travels_without_its_open_files(make):
    reader = reader_of(make())
    rows = {"rgb": np.arange(18)}
    found = reader.read(rows)
    again = copy.copy(reader)
    assert "_files" not in vars(again) and again.read(rows) == found
    assert len(pickle.dumps(reader)) < 2000
    opened = [reader._files(shard).descriptor for shard in range(3)]
    assert reader._files.cache_info().misses == 3
    del reader
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_few_files_stay_open(make, monkeypatch):
    monkeypatch.setattr("manifests.reader.OPEN_FILES", 2)
    dataset = make(identities=6, per_shard=1)
    reader = reader_of(dataset)
    assert reader.read({"rgb": np.arange(18)})["rgb"] == contents(dataset, "rgb")
    assert reader._files.cache_info().currsize == 2


def test_threads_share_a_reader_even_while_files_are_closed(make, monkeypatch):
    monkeypatch.setattr("manifests.reader.OPEN_FILES", 1)
    dataset = make(identities=6, per_shard=1)
    reader, expected = reader_of(dataset), contents(dataset, "rgb")
    orders = [np.random.default_rng(i).permutation(18) for i in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rows: reader.read({"rgb": rows})["rgb"], orders))
    assert found == [[expected[row] for row in rows] for rows in orders]


def test_a_cut_shard_is_told_by_its_first_lost_member(make):
    dataset = make()
    reader = reader_of(dataset)
    index, tar = reader.index, dataset.storage.path(tar_file(1))
    at = int(index.offset["normal"][8])
    os.truncate(tar, at + 100)
    reader.read({"normal": np.arange(6, 8)})
    with pytest.raises(
        DamagedData, match=r"heads-000001.tar, 0000002_v002.normal.png is cut: the shard ends at byte"
    ) as error:
        reader.read({"rgb": np.arange(6, 9), "normal": np.arange(6, 9)})
    assert error.value.row == 8


def test_a_shard_that_is_gone_is_named(make):
    dataset = make()
    reader = reader_of(dataset)
    dataset.storage.remove(tar_file(2))
    with pytest.raises(FileNotFoundError, match=r"^shards/heads-000002.tar of .* was removed"):
        reader.read({"rgb": np.arange(18)})


def test_object_stores_are_read_by_byte_ranges(make):
    dataset = make()
    remote = upload(dataset, "memory://ranges/heads")
    reader = reader_of(remote)
    assert reader.read({"rgb": np.arange(18)})["rgb"] == contents(dataset, "rgb")
    assert reader.fetched < 1.2 * reader.needed
    remote.storage.remove(tar_file(1))
    with pytest.raises(FileNotFoundError, match=r"heads-000001\.tar"):
        reader.read({"rgb": np.arange(18)})


def cache_of(dataset: Dataset, folder, shards: float) -> ShardCache:
    index = open_index(dataset)
    return ShardCache(
        dataset.storage.url, index.fingerprint, str(folder), int(shards * (index.shard_sizes.max() + 2048))
    )


def test_the_cache_brings_whole_shards_once(make, tmp_path, monkeypatch):
    dataset = make()
    remote = upload(dataset, "memory://cached/heads")
    readers = [reader_of(remote, cache_of(remote, tmp_path / "cache", 3)) for _ in range(2)]
    for reader in readers:
        assert reader.read({"rgb": np.arange(18)})["rgb"] == contents(dataset, "rgb")
        monkeypatch.setattr(MemoryFileSystem, "get_file", None)
    copies = list((tmp_path / "cache").glob("spinset-cache/*/*.tar"))
    assert sorted(c.read_bytes() for c in copies) == sorted(remote.storage.read(tar_file(s)) for s in range(3))
    assert not list((tmp_path / "cache").glob("*/*.part-*"))


def test_the_cache_stays_within_its_bound_and_drops_what_was_used_longest_ago(make, tmp_path):
    remote = upload(make(identities=5, per_shard=1), "memory://bounded/heads")
    cache = cache_of(remote, tmp_path / "cache", 2)
    (foreign := tmp_path / "cache" / "mine" / "photos.tar").parent.mkdir(parents=True)
    foreign.write_bytes(bytes(100_000))
    for shard in (0, 1, 0, 2, 3):
        cache.open(shard).close()
    assert sorted(p.name for p in cache.own.glob("*.tar")) == [f"{schema.shard_name(s)}.tar" for s in (2, 3)]
    cache.open(2).close()
    with cache.open(4) as kept:
        assert {p.name for p in cache.own.glob("*.tar")} == {f"{schema.shard_name(s)}.tar" for s in (2, 4)}
        cache.open(0).close()
        cache.open(1).close()
        assert kept.read() == remote.storage.read(tar_file(4))
    assert foreign.exists(), "what somebody else keeps there is neither counted nor dropped"


def test_many_who_want_a_shard_fetch_it_once(make, tmp_path, monkeypatch):
    remote = upload(make(), "memory://once/heads")
    fetched, fs = [], MemoryFileSystem
    original = fs.get_file
    monkeypatch.setattr(fs, "get_file", lambda self, *a, **k: fetched.append(a[0]) or original(self, *a, **k))
    threads = [threading.Thread(target=cache_of(remote, tmp_path, 3).fetch, args=(1,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


def test_looking_ahead_fetches_and_leaves_errors_to_the_reader(make, tmp_path):
    remote = upload(make(), "memory://ahead/heads")
    remote.storage.remove(tar_file(2))
    cache = cache_of(remote, tmp_path / "cache", 3)
    with LookAhead(cache) as look_ahead:
        look_ahead.want([0, 2])
        look_ahead.want([0, 1])
        for future in list(look_ahead._running.values()):
            future.exception()
    assert len(list(cache.own.glob("*.tar"))) == 2
    with pytest.raises(FileNotFoundError, match="was removed after the run began"):
        reader_of(remote, cache).read({"rgb": np.arange(18)})
