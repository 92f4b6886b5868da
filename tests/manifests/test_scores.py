"""Score tables: committed whole, guarded by lineage, and never older than the shards they speak of."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import small_plan, write_shard

from manifests.errors import DamagedData
from manifests.scores import (
    IDENTITY,
    VIEW,
    WHOLE,
    Lineage,
    ScoresMismatch,
    column,
    current_part,
    gather,
    open_scores,
    part_file,
    read_part,
    shard_hashes,
    table_schema,
    tables,
    tar_sha256,
    whole_file,
    write_part,
)  # fmt: skip

LINEAGE = Lineage("noise", 1, "ab", {"limit": 3})
COLUMNS = (column("fog", VIEW, "how foggy"), column("holes", IDENTITY, "how many"),
           column("embedding", VIEW, "a vector", pa.list_(pa.float16(), 2)))  # fmt: skip


def rows(dataset, shard: int, fog: float = 0.0) -> pa.Table:
    identity = np.repeat(list(dataset.plan.identities_of(shard)), 4)
    view = np.tile(np.arange(-1, 3), len(identity) // 4)
    is_view = view != WHOLE
    data = {
        "identity": identity,
        "view": view.astype(np.int16),
        "azimuth": pa.array(120.0 * view, pa.float32(), mask=~is_view),
        "elevation": pa.array(0.0 * view, pa.float32(), mask=~is_view),
        "fog": pa.array(fog + identity + view / 10, pa.float32(), mask=~is_view),
        "holes": pa.array(identity, pa.float32(), mask=is_view),
        "embedding": pa.array([[1, 0] if v else None for v in is_view], pa.list_(pa.float16(), 2)),
    }
    return pa.table(data, schema=table_schema(COLUMNS))


def score_all(dataset, lineage=LINEAGE) -> None:
    for shard in dataset.committed():
        write_part(dataset, "noise", shard, rows(dataset, shard), lineage, tar_sha256(dataset, shard))


def test_a_table_is_its_parts_without_embeddings(small_dataset):
    score_all(small_dataset)
    assert gather(small_dataset, "noise", LINEAGE) == ([], {})
    assert tables(small_dataset.storage) == ["noise"]
    scores = open_scores(small_dataset, "noise", shard_hashes(small_dataset))
    assert scores.lineage == LINEAGE
    assert list(scores.columns) == ["fog", "holes"]
    assert [scores.level(name) for name in scores.columns] == [VIEW, IDENTITY]
    fog, valid = scores.numbers("fog")
    assert valid.all()
    np.testing.assert_allclose(fog, [i + v / 10 for i in range(5) for v in range(3)], rtol=1e-6)
    assert scores.numbers("holes")[0].tolist() == [0, 1, 2, 3, 4]


def test_null_is_not_nan(small_dataset):
    for shard in small_dataset.committed():
        table = rows(small_dataset, shard)
        keys = zip(table["identity"].to_pylist(), table["view"].to_pylist(), strict=True)
        holes = pa.array([None if v != WHOLE or i == 1 else np.nan for i, v in keys], pa.float32(), from_pandas=False)
        table = table.set_column(table.schema.get_field_index("holes"), table.schema.field("holes"), holes)
        write_part(small_dataset, "noise", shard, table, LINEAGE, tar_sha256(small_dataset, shard))
    gather(small_dataset, "noise", LINEAGE)
    holes, valid = open_scores(small_dataset, "noise", shard_hashes(small_dataset), ["holes"]).numbers("holes")
    assert np.isnan(holes).all()
    assert valid.tolist() == [True, False, True, True, True]


def test_only_the_same_lineage_continues_a_table(small_dataset):
    score_all(small_dataset)
    assert current_part(small_dataset, "noise", 0, LINEAGE)
    for other, what in ((Lineage("noise", 2, "ab", {"limit": 3}), "version 1 .now 2."),
                        (Lineage("noise", 1, "cd", {"limit": 3}), "weights_sha256"),
                        (Lineage("noise", 1, "ab", {"limit": 4}), "settings")):  # fmt: skip
        with pytest.raises(ScoresMismatch, match=what):
            current_part(small_dataset, "noise", 0, other)
        assert not current_part(small_dataset, "noise", 0, other, replace=True)


def test_a_shard_made_anew_makes_its_scores_old(small_dataset):
    score_all(small_dataset)
    gather(small_dataset, "noise", LINEAGE)
    small_dataset.storage.remove(small_dataset.file(1, ".done.json"))
    write_shard(small_dataset.storage, small_dataset.plan, 1, views=2)
    assert [current_part(small_dataset, "noise", s, LINEAGE) is not None for s in (0, 1, 2)] == [True, False, True]
    with pytest.raises(ValueError, match="is older than shards 1; run spinset score again"):
        open_scores(small_dataset, "noise", shard_hashes(small_dataset))
    assert gather(small_dataset, "noise", LINEAGE).lacking == [1]


def test_shards_that_come_or_go_are_noticed(small_dataset):
    score_all(small_dataset)
    gather(small_dataset, "noise", LINEAGE)
    hashes = shard_hashes(small_dataset)
    with pytest.raises(ValueError, match="lacks shards 7"):
        open_scores(small_dataset, "noise", {**hashes, "7": "x"})
    with pytest.raises(ValueError, match="shards 2, which no longer exist"):
        open_scores(small_dataset, "noise", {k: v for k, v in hashes.items() if k != "2"})


def test_unknown_tables_and_columns_say_what_there_is(small_dataset):
    score_all(small_dataset)
    gather(small_dataset, "noise", LINEAGE)
    with pytest.raises(ValueError, match=r"no scores of 'mesh' \(tables: noise\)"):
        open_scores(small_dataset, "mesh", {})
    with pytest.raises(ValueError, match="no column 'frog'; they have fog, holes"):
        open_scores(small_dataset, "noise", {}, ["frog"])


def test_another_plan_s_scores_are_refused(small_dataset, tmp_path):
    score_all(small_dataset)
    gather(small_dataset, "noise", LINEAGE)
    from manifests.dataset import Dataset
    from manifests.plan import write_plan
    from manifests.storage import Storage

    other = Storage(tmp_path / "other")
    write_plan(other, small_plan(seed=9))
    for file in (whole_file("noise"), part_file("noise", 0)):
        other.write(file, small_dataset.storage.read(file))
    with pytest.raises(ValueError, match="belongs to a dataset with another plan"):
        open_scores(Dataset(other), "noise", {})
    with pytest.raises(ScoresMismatch, match="another plan"):
        current_part(Dataset(other), "noise", 0, LINEAGE)


def test_a_plain_reader_sees_what_the_columns_mean(small_dataset):
    score_all(small_dataset)
    table = pq.read_table(small_dataset.storage.path(part_file("noise", 0)))
    assert table.schema.field("fog").metadata == {b"level": b"view", b"about": b"how foggy"}
    assert b'"weights_sha256": "ab"' in table.schema.metadata[b"spinset.scores"]


def test_damaged_pages_name_the_command_that_scores_again(small_dataset):
    """The footer is whole, so the table opens; its numbers do not decode."""
    score_all(small_dataset)
    gather(small_dataset, "noise", LINEAGE)
    for file in (part_file("noise", 0), whole_file("noise")):
        data = small_dataset.storage.read(file)
        small_dataset.storage.write(file, data[:4] + b"\xff" * 200 + data[204:])
    again = f"run spinset score {small_dataset.storage.url} --replace"
    with pytest.raises(DamagedData, match=f"^{part_file('noise', 0)} is damaged .*{again}$"):
        read_part(small_dataset, "noise", 0)
    with pytest.raises(DamagedData, match=f"^{whole_file('noise')} is damaged .*{again}$"):
        open_scores(small_dataset, "noise", shard_hashes(small_dataset))
