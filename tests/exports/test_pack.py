"""A pack is a whole dataset of what was kept: same bytes, same numbers, its lineage known."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small import members_of, small_plan, write_shard

from exports.pack import open_pack, pack_plan, write_pack
from manifests.dataset import Dataset
from manifests.plan import PlanMismatch, read_plan, write_plan
from manifests.selection import ROWS, read_selection, write_selection
from manifests.shards import ShardWriter
from manifests.storage import Storage
from manifests.subset import open_subset
from manifests.verify import verify

LOST = {(0, 1), (4, 0), (4, 2)}


@pytest.fixture
def selected(small_dataset) -> Dataset:
    """5 identities of 3 views: 2 views of identity 4, one of 0 and all of identity 2 are dropped."""
    rows = []
    for identity in range(5):
        rows.append((identity, -1, identity != 2, "bad" if identity == 2 else None, None))
        for view in range(3):
            keep = identity != 2 and (identity, view) not in LOST
            rows.append((identity, view, keep, None if keep else "janus", None))
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), ROWS, strict=True)]
    write_selection(small_dataset, "clean", pa.table(columns, schema=ROWS), policy={"name": "clean"})
    return small_dataset


def pack(source: Dataset, dest, selection="clean", identities="", shard_bytes=1) -> Dataset:
    subset, chosen = open_subset(source, selection, identities)
    made = open_pack(Storage(dest), pack_plan(source, subset, chosen, shard_bytes))
    write_pack(source, subset, made)
    return made


def files(dataset: Dataset) -> dict[str, str]:
    root = Path(dataset.storage.root)
    paths = [p for p in root.rglob("*") if p.is_file() and not p.name.endswith(".done.json")]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def members(dataset: Dataset) -> dict[tuple[str, str], bytes]:
    return {
        (key, name): data
        for shard in dataset.committed()
        for name in dataset.plan.members
        for key, data in zip(
            dataset.views(shard).column("key").to_pylist(), members_of(dataset, shard, name), strict=True
        )
    }


def test_it_holds_what_was_kept_byte_for_byte(selected, tmp_path):
    made = pack(selected, tmp_path / "pack")
    assert list(verify(made, deep=True)) == []
    whole = members(selected)
    gone = {f"{i:07d}_v{v:03d}" for i, v in LOST | {(2, 0), (2, 1), (2, 2)}}
    assert members(made) == {at: data for at, data in whole.items() if at[0] not in gone}
    assert made.all_identities.column("identity").to_pylist() == [0, 1, 3, 4]
    assert made.all_identities.column("views").to_pylist() == [2, 3, 3, 1]


def test_shards_are_filled_up_to_their_size(selected, tmp_path):
    one_each = pack(selected, tmp_path / "small", shard_bytes=1)
    assert [one_each.plan.identities_of(s) for s in range(one_each.plan.shards)] == [[0], [1], [3], [4]]
    size = one_each.done(1)["files"][".tar"]["size"]
    two = pack(selected, tmp_path / "two", shard_bytes=2 * size)
    assert [two.plan.identities_of(s) for s in range(two.plan.shards)] == [[0, 1], [3, 4]]
    all_in_one = pack(selected, tmp_path / "large", shard_bytes=10**9)
    assert all_in_one.plan.shards == 1 and list(verify(all_in_one, deep=True)) == []


def test_the_plan_says_where_it_comes_from(selected, tmp_path):
    packed = pack(selected, tmp_path / "pack").plan.packed
    assert packed["source"] == selected.plan.fingerprint
    assert packed["selection"]["policy"] == {"name": "clean"}
    assert packed["selection"]["views"] == {"judged": 15, "kept": 9, "dropped": {"janus": 6}}
    assert packed["selection"]["identities"] == {"judged": 5, "kept": 4, "dropped": {"bad": 1}}
    again = pack(Dataset(str(tmp_path / "pack")), tmp_path / "again", selection="", identities="1:4")
    assert again.plan.packed["before"]["source"] == selected.plan.fingerprint
    assert again.plan.identities_of(0) == [1] and again.plan.identities == 2
    assert list(verify(again, deep=True)) == []


def test_same_bytes_and_resumed_after_a_stop(selected, tmp_path, monkeypatch):
    first = pack(selected, tmp_path / "first")
    subset, selection = open_subset(selected, "clean")
    stopped = open_pack(Storage(tmp_path / "second"), pack_plan(selected, subset, selection, 1))

    def stop(self, row):
        if row["identity"] == 3:
            raise KeyboardInterrupt
        self._identities.append(dict(row))

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add_identity", stop)
        with pytest.raises(KeyboardInterrupt):
            write_pack(selected, subset, stopped)
    assert stopped.committed() == [0, 1]
    before = (tmp_path / "second/shards/heads-000000.done.json").stat().st_mtime_ns
    assert files(pack(selected, tmp_path / "second")) == files(first)
    assert (tmp_path / "second/shards/heads-000000.done.json").stat().st_mtime_ns == before
    assert not list((tmp_path / "second").rglob("*.tmp-*"))


def test_it_never_writes_over_something_else(selected, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        pack(selected, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    pack(selected, tmp_path / "pack")
    with pytest.raises(PlanMismatch, match=r"holds another dataset: .*packed"):
        pack(selected, tmp_path / "pack", selection="")
    with pytest.raises(PlanMismatch):
        pack(selected, selected.storage.root)


def test_damage_is_not_copied(selected, tmp_path):
    entry = selected.views(0).to_pylist()[2]["alpha"]
    tar = Path(selected.storage.path(selected.file(0, ".tar")))
    data = bytearray(tar.read_bytes())
    data[entry["offset"]] ^= 1
    tar.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"heads-000000\.tar, 0000000_v002\.alpha\.png is damaged; run spinset repair "
    ):
        pack(selected, tmp_path / "pack")
    assert Dataset(str(tmp_path / "pack")).committed() == []


def test_what_cannot_be_packed(selected, tmp_path):
    with pytest.raises(ValueError, match=r"no selection 'other' \(selections: clean\)"):
        open_subset(selected, "other")
    with pytest.raises(ValueError, match="nothing is left"):
        open_subset(selected, identities="7:9")
    with pytest.raises(ValueError, match="give a count such as 100"):
        open_subset(selected, identities="1-4")
    assert open_subset(selected, "clean", "3")[0].identities.tolist() == [0, 1, 3]
    assert open_subset(selected, identities=":2")[0].identities.tolist() == [0, 1]
    selected.storage.remove("shards/heads-000002.done.json")
    with pytest.raises(ValueError, match=r"1 of 3 shards of .* are not made yet"):
        open_subset(selected)


def test_plans_of_generated_datasets_keep_their_fingerprint():
    assert "packed" not in small_plan().document()
    former = replace(small_plan(), version=1)
    assert former.fingerprint == "2cd5cd0c3619777d70a53dfcce568cd0cc8431596b991ab2e61c71bf428ebd70"
    assert small_plan().fingerprint == "19cc19e78525138ef8dd35599fd08282b70f8e273d13116cb48a8d55c140eca5"


def test_a_remote_pack(selected):
    made = pack(selected, "memory://packs/clean")
    assert list(verify(made, deep=True)) == []
    assert np.isin([0, 4], made.all_identities.column("identity").to_numpy()).all()


def test_a_packed_plan_reads_back(selected, tmp_path):
    made = pack(selected, tmp_path / "pack")
    assert read_plan(Storage(tmp_path / "pack")) == made.plan
    write_plan(Storage(tmp_path / "pack"), made.plan)
    storage = Storage(tmp_path / "other")
    write_plan(storage, small_plan())
    write_shard(storage, small_plan(), 0)
    with pytest.raises(PlanMismatch):
        write_plan(storage, made.plan)


def test_a_selection_made_before_some_heads_is_refused(selected):
    """Or what was made since would be missing without a word."""
    rows = read_selection(selected, "clean").rows
    early = rows.filter(pa.array(rows.column("identity").to_numpy() < 3))
    write_selection(selected, "early", early)
    with pytest.raises(ValueError, match="judged other views than there are now"):
        open_subset(selected, "early")


def test_what_a_pack_lacks_is_known_without_its_selection(selected, tmp_path):
    made = pack(selected, tmp_path / "pack")
    for subset, _ in (open_subset(selected, "clean"), open_subset(made)):
        assert subset.identities[np.diff(subset.starts) < 3].tolist() == [0, 4]
