"""The index: the shards' own numbers, made once, mapped by all, never older than the shards."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import choose, small_plan, write_shard

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.index import FILE, open_index
from manifests.plan import write_plan
from manifests.scores import WHOLE
from manifests.selection import Selection, read_selection
from manifests.storage import Storage


def write_choice(dataset: Dataset, name: str, dropped: set[tuple[int, int]], views: int = 3) -> Selection:
    """A selection that drops some views, and is none the wiser about why."""
    choose(dataset, name, dropped, views)
    return read_selection(dataset, name)


def test_it_says_what_the_shards_say(small_dataset):
    index = open_index(small_dataset)
    rows = [(s, row) for s in small_dataset.committed() for row in small_dataset.views(s).to_pylist()]
    assert len(index) == len(rows) == 15
    assert index.starts.tolist() == [0, 3, 6, 9, 12, 15]
    for k, (shard, row) in enumerate(rows):
        assert (index.shard[k], index.identity[k], index.view[k]) == (shard, row["identity"], row["view"])
        assert (index.azimuth[k], index.elevation[k]) == (row["azimuth"], row["elevation"])
        assert index.c2w[k].ravel().tolist() == row["c2w"] and index.K[k].ravel().tolist() == row["K"]
        for member in schema.MEMBERS:
            assert index.offset[member][k] == row[member]["offset"] and index.size[member][k] == row[member]["size"]
    tars = [small_dataset.storage.size(small_dataset.file(s, ".tar")) for s in small_dataset.committed()]
    assert all(0 < tar - size < 2048 for tar, size in zip(tars, index.shard_sizes, strict=True))


def test_it_is_made_once_and_mapped(small_dataset, monkeypatch):
    first = open_index(small_dataset)
    monkeypatch.setattr(Dataset, "views", None)
    second = open_index(small_dataset)
    assert second.mapped == small_dataset.storage.path(FILE)
    assert first.fingerprint == second.fingerprint
    assert not second.c2w.flags.owndata and not second.identity.flags.writeable
    assert len(pickle.dumps(second)) < 500
    again = copy.copy(second)
    assert again.fingerprint == second.fingerprint and np.array_equal(again.offset["rgb"], second.offset["rgb"])


def test_opening_it_does_not_import_pandas(small_dataset):
    """Which takes longer than all the rest, and which some of pyarrow's functions do."""
    open_index(small_dataset)
    write_choice(small_dataset, "some", {(1, 0)})
    script = (
        "import sys; from manifests.dataset import Dataset; from manifests.index import open_index; "
        "from manifests.selection import read_selection; dataset = Dataset(sys.argv[1]); "
        "open_index(dataset).select(read_selection(dataset, 'some')); assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, small_dataset.storage.url], check=True)


def test_other_shards_give_another_index(tmp_path):
    storage, plan = Storage(tmp_path), small_plan()
    write_plan(storage, plan)
    dataset = Dataset(storage)
    with pytest.raises(ValueError, match="no finished shard"):
        open_index(dataset)
    write_shard(storage, plan, 0)
    first = open_index(dataset)
    write_shard(storage, plan, 2)
    second = open_index(dataset)
    assert (len(first), len(second)) == (6, 9)
    assert first.fingerprint != second.fingerprint
    assert sorted(set(second.shard.tolist())) == [0, 2]
    reopen, arguments = second.__reduce__()
    write_shard(storage, plan, 1)
    open_index(dataset)
    with pytest.raises(ValueError, match="other shards"):
        reopen(*arguments)


@pytest.mark.parametrize("damage", [b"", b"nonsense", "cut"])
def test_a_damaged_index_is_made_anew(small_dataset, damage):
    whole = open_index(small_dataset)
    file = small_dataset.storage.path(FILE)
    with open(file, "rb") as stream:
        data = stream.read()
    with open(file, "wb") as stream:
        stream.write(data[: len(data) // 2] if damage == "cut" else damage)
    again = open_index(small_dataset)
    assert again.fingerprint == whole.fingerprint and len(again) == 15
    with open(file, "rb") as stream:
        assert stream.read() == data


def test_a_folder_that_cannot_be_written_is_said_and_read_all_the_same(small_dataset, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(Storage, "scratch", refuse)
    with pytest.warns(UserWarning, match="is kept in a temporary folder"):
        index = open_index(small_dataset)
    again = copy.copy(index)
    assert not small_dataset.storage.exists(FILE) and len(again) == 15
    assert again.mapped == index.mapped == open_index(small_dataset).mapped  # and no second warning


def test_a_former_index_is_removed(small_dataset):
    small_dataset.storage.write("index.arrow", b"of an earlier version")
    open_index(small_dataset)
    assert small_dataset.storage.names() == ["dataset.json", FILE, "shards"]


def test_other_tools_read_it(small_dataset):
    index, arrays = open_index(small_dataset), load_file(small_dataset.storage.path(FILE))
    assert np.array_equal(arrays["c2w"], index.c2w) and np.array_equal(arrays["rgb.size"], index.size["rgb"])
    assert all(array.flags.aligned for array in (index.identity, index.c2w, index.view, *index.offset.values()))


def test_a_shard_of_other_views_than_it_committed_is_named(small_dataset):
    done = small_dataset.done(1)
    small_dataset.storage.write_json(small_dataset.file(1, ".done.json"), {**done, "views": 5})
    with pytest.raises(DamagedData, match=r"heads-000001.views.parquet has 6 rows, its shard 5 views"):
        open_index(small_dataset)
    assert not small_dataset.storage.exists(FILE)


def test_an_index_in_an_object_store(small_dataset):
    remote = Storage("memory://index/heads")
    remote.fs.put(small_dataset.storage.root, remote.root, recursive=True)
    indices = [open_index(Dataset("memory://index/heads")) for _ in range(2)]
    assert remote.exists(FILE)
    copies = [index.mapped for index in indices]
    assert copies[0] == copies[1] and np.array_equal(indices[0].c2w, open_index(small_dataset).c2w)
    Path(copies[0]).unlink()
    assert np.array_equal(open_index(Dataset(remote.url)).c2w, indices[0].c2w) and Path(copies[0]).exists()
    Path(copies[0]).unlink()
    remote.write(FILE, remote.read(FILE)[:-1])
    assert len(open_index(Dataset(remote.url))) == 15 and remote.size(FILE) == small_dataset.storage.size(FILE)
    assert indices[0].fingerprint == indices[1].fingerprint == open_index(small_dataset).fingerprint


def test_a_selection_is_a_view_of_the_index(small_dataset):
    index = open_index(small_dataset)
    whole = index.select()
    assert whole.fingerprint is None and whole.rows.tolist() == list(range(15))
    assert whole.identities.tolist() == [0, 1, 2, 3, 4]
    chosen = write_choice(small_dataset, "some", {(1, WHOLE), (0, 0), (4, 2)})
    subset = index.select(chosen)
    assert subset.fingerprint == chosen.fingerprint
    assert subset.rows.tolist() == [1, 2, 6, 7, 8, 9, 10, 11, 12, 13]
    assert subset.identities.tolist() == [0, 2, 3, 4]
    assert [subset.rows_of(p).tolist() for p in (0, 3)] == [[1, 2], [12, 13]]
    fewer = subset.restricted_to(np.array([True, False, False, True]))
    assert fewer.rows.tolist() == [1, 2, 12, 13] and fewer.starts.tolist() == [0, 2, 4]
    assert fewer.fingerprint == chosen.fingerprint


def test_selections_that_do_not_fit_are_refused(small_dataset):
    index = open_index(small_dataset)
    whole = write_choice(small_dataset, "all", set())
    with pytest.raises(ValueError, match="another dataset"):
        index.select(Selection("all", "f", "other", whole.rows))
    with pytest.raises(ValueError, match=r"does not know 2 of the 15 views .*0000004_v001"):
        index.select(Selection("all", "f", index.plan, whole.rows.slice(0, len(whole.rows) - 2)))
    with pytest.raises(ValueError, match="does not know 15"):
        index.select(Selection("all", "f", index.plan, whole.rows.slice(0, 0)))
    with pytest.raises(ValueError, match="keeps none"):
        index.select(write_choice(small_dataset, "none", {(i, WHOLE) for i in range(5)}))


def test_a_dataset_of_failures_has_no_index(tmp_path):
    storage, plan = Storage(tmp_path), small_plan()
    write_plan(storage, plan)
    write_shard(storage, plan, 0, views=0)
    with pytest.raises(ValueError, match="no views"):
        open_index(Dataset(storage))
