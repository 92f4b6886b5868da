"""One vector per identity: the mean of its views', from the parts or from the file gathered of them."""

import numpy as np
import pyarrow as pa
import pytest
from small import small_plan, write_shard

from manifests.dataset import Dataset
from manifests.embeddings import embeddings_file, embeddings_of, gather_embeddings, mean_embeddings
from manifests.errors import UserError
from manifests.plan import write_plan
from manifests.scores import (
    IDENTITY,
    VIEW,
    WHOLE,
    Lineage,
    column,
    gather,
    read_part,
    table_schema,
    tar_sha256,
    write_part,
)
from manifests.storage import Storage

FIELDS = [column("embedding", VIEW, "test", pa.list_(pa.float16(), 4)), column("mean_cosine", IDENTITY, "test")]


def vectors(identity: int, seed: int) -> np.ndarray:
    return np.random.default_rng([identity, seed]).normal(size=(3, 4)).astype(np.float16)


def embed(dataset: Dataset, seed: int = 0) -> None:
    """Three views each; identity 2 has no embedding."""
    lineage = Lineage("arcface", seed, None)
    for shard in dataset.committed():
        rows = [(i, v) for i in dataset.plan.identities_of(shard) for v in range(WHOLE, 3)]
        values = [None if v == WHOLE or i == 2 else vectors(i, seed)[v].tolist() for i, v in rows]
        nothing = [None] * len(rows)
        columns = [[i for i, _ in rows], [v for _, v in rows], nothing, nothing, values, nothing]
        schema = table_schema(FIELDS)
        part = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        write_part(dataset, "arcface", shard, part, lineage, tar_sha256(dataset, shard))
    gather(dataset, "arcface", lineage)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    storage, plan = Storage(tmp_path / "heads"), small_plan()
    write_plan(storage, plan)
    for shard in range(plan.shards):
        write_shard(storage, plan, shard)
    made = Dataset(storage)
    embed(made)
    return made


def test_they_are_the_unit_means(dataset):
    identity, means = mean_embeddings(dataset, "arcface")
    assert identity.tolist() == list(range(5)) and np.isnan(means[2]).all()
    for i in (0, 1, 3, 4):
        total = vectors(i, 0).astype(np.float32).sum(0)
        np.testing.assert_allclose(means[i], total / np.linalg.norm(total), atol=1e-6)


def test_the_gathered_file_says_the_same_and_is_what_is_read(dataset):
    before = mean_embeddings(dataset, "arcface")
    gather_embeddings(dataset, "arcface")
    for shard in dataset.committed():
        dataset.storage.remove(f"scores/arcface/heads-{shard:06d}.parquet")
    for a, b in zip(before, mean_embeddings(dataset, "arcface"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gathered_file_of_other_scores_is_not_believed(dataset):
    gather_embeddings(dataset, "arcface")
    before = mean_embeddings(dataset, "arcface")[1]
    for shard in dataset.committed():
        dataset.storage.remove(f"scores/arcface/heads-{shard:06d}.parquet")
    embed(dataset, seed=1)
    assert dataset.storage.exists(embeddings_file("arcface"))
    assert not np.allclose(mean_embeddings(dataset, "arcface")[1][0], before[0])


def test_a_shard_without_any_embedding_is_no_trouble(tmp_path):
    """Such as one whose heads were all rejected, or show no face."""
    storage, plan = Storage(tmp_path / "heads"), small_plan(5, 1)
    write_plan(storage, plan)
    for shard in range(plan.shards):
        write_shard(storage, plan, shard)
    dataset = Dataset(storage)
    embed(dataset)
    gather_embeddings(dataset, "arcface")
    identity, means = mean_embeddings(dataset, "arcface")
    assert identity.tolist() == list(range(5)) and np.isnan(means[2]).all() and not np.isnan(means[3]).any()


def test_identities_are_joined_by_number_and_missing_ones_are_named(dataset):
    found = embeddings_of(dataset, "arcface", np.array([3, 0]))
    np.testing.assert_array_equal(found, mean_embeddings(dataset, "arcface")[1][[3, 0]])
    with pytest.raises(UserError, match="embeddings of arcface lack identities 7, 9;"):
        embeddings_of(dataset, "arcface", np.array([3, 7, 9]))


def test_parts_of_another_recogniser_are_not_mixed_in(dataset):
    rows = read_part(dataset, "arcface", 0)
    write_part(dataset, "arcface", 0, rows, Lineage("arcface", 0, "other"), tar_sha256(dataset, 0))
    with pytest.raises(UserError, match=r"heads-000000.parquet and the table arcface have different lineages"):
        mean_embeddings(dataset, "arcface")
