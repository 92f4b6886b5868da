"""Verification finds every damage and says where it is."""

import numpy as np
import pytest
from small import small_plan, write_shard

from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage
from manifests.verify import verify

TAR = "shards/heads-000001.tar"


def edit(dataset: Dataset, name: str, change) -> None:
    data = bytearray(dataset.storage.read(name))
    dataset.storage.write(name, bytes(change(data)))


def flip(position: int):
    def change(data: bytearray) -> bytearray:
        data[position] ^= 0x10
        return data

    return change


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_dataset_has_no_faults(small_dataset, deep):
    assert list(verify(small_dataset, deep)) == []


def test_missing_shards_are_faults(tmp_path):
    storage, plan = Storage(tmp_path), small_plan()
    write_plan(storage, plan)
    write_shard(storage, plan, 0)
    assert [str(f) for f in verify(Dataset(storage))] == [
        "shards/heads-000001.tar: not made yet",
        "shards/heads-000002.tar: not made yet",
    ]


def test_a_cut_tar_names_member_and_byte(small_dataset):
    entry = small_dataset.views(1).to_pylist()[2]["normal"]
    end = entry["offset"] + 10
    edit(small_dataset, TAR, lambda data: data[:end])
    (fault,) = verify(small_dataset)
    assert (fault.file, fault.member, fault.byte) == (TAR, "0000002_v002.normal.png", end)
    assert "is cut" in str(fault)


def test_an_edited_member_is_named(small_dataset):
    entry = small_dataset.views(1).to_pylist()[4]["rgb"]
    edit(small_dataset, TAR, flip(entry["offset"] + 20))
    assert list(verify(small_dataset)) == []
    (fault,) = verify(small_dataset, deep=True)
    assert (fault.file, fault.member, fault.byte) == (TAR, "0000003_v001.rgb.jpg", entry["offset"])


def test_an_edited_header_is_named_to_the_byte(small_dataset):
    entry = small_dataset.views(1).to_pylist()[0]["json"]
    edit(small_dataset, TAR, flip(entry["offset"] - 500))
    (fault,) = verify(small_dataset, deep=True)
    assert (fault.member, fault.byte) == ("0000002_v000.json", entry["offset"] - 500)


def test_extra_bytes(small_dataset):
    edit(small_dataset, TAR, lambda data: data + b"more")
    (fault,) = verify(small_dataset)
    assert "4 bytes too many" in str(fault)


def test_a_lost_file(small_dataset):
    small_dataset.storage.remove("shards/heads-000000.identities.parquet")
    (fault,) = verify(small_dataset)
    assert str(fault) == "shards/heads-000000.identities.parquet: missing"


def test_a_damaged_record(small_dataset):
    edit(small_dataset, "shards/heads-000002.done.json", lambda data: data[:50])
    (fault,) = verify(small_dataset)
    assert str(fault).startswith("shards/heads-000002.done.json: damaged")


def test_every_cut_is_caught_without_deep_and_every_flip_with_it(small_dataset):
    """150 cuts and 150 bit flips over all three files of a shard; none is silent, none raises."""
    rng = np.random.default_rng(0)
    files = [f"shards/heads-000001{s}" for s in (".tar", ".views.parquet", ".identities.parquet")]
    for i in range(150):
        name = files[i % 3]
        whole = small_dataset.storage.read(name)
        at = int(rng.integers(len(whole)))
        small_dataset.storage.write(name, whole[:at])
        assert any(fault.file == name for fault in verify(small_dataset)), (name, at)
        small_dataset.storage.write(name, bytes(flip(at)(bytearray(whole))))
        assert any(fault.file == name for fault in verify(small_dataset, deep=True)), (name, at)
        small_dataset.storage.write(name, whole)
    assert list(verify(small_dataset, deep=True)) == []
