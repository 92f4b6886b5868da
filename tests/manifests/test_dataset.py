"""A dataset as its readers see it."""

import hashlib

from small import small_plan

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage


def test_united_views_name_their_shard_and_hold_hashes_as_text(small_dataset):
    """Every member is found by the shard, offset and size of its row, and has the hash of its row."""
    views = small_dataset.all_views
    assert views.schema == schema.ALL_VIEWS and len(views) == 15
    for row in views.to_pylist():
        assert row["shard"] == small_dataset.plan.shard_of(row["identity"])
        tar = small_dataset.storage.read(small_dataset.file(row["shard"], ".tar"))
        for name in schema.MEMBERS:
            member = row[name]
            data = tar[member["offset"] : member["offset"] + member["size"]]
            assert hashlib.sha256(data).hexdigest() == member["sha256"]


def test_a_dataset_without_shards_has_no_views(tmp_path):
    storage = Storage(tmp_path)
    write_plan(storage, small_plan())
    assert len(Dataset(storage).all_views) == 0


def test_committed_shards_come_from_the_listing(small_dataset):
    """A plan of very many shards costs nothing, and files of other names are no shards."""
    for name in ("heads-00001.done.json", "heads-000009.done.json", "notes.done.json", "heads-x.done.json"):
        small_dataset.storage.write(f"shards/{name}", b"{}")
    assert small_dataset.committed() == [0, 1, 2]
