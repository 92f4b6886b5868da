"""Who an identity is, as one vector: the mean of the embeddings of its frontal views, at unit length."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from manifests.dataset import Dataset
from manifests.scores import open_scores, part_file, shard_hashes

COLUMN = "embedding"
THREADS = 8

Embedded = tuple[Int64[np.ndarray, " i"], Float32[np.ndarray, "i d"]]


def mean_embeddings(dataset: Dataset, table: str) -> Embedded:
    """All identities in the order of the shards, and their embeddings; NaN for those that have none.

    Raises:
        ValueError: there is no such table, it is not of these shards, or it holds no embeddings.
    """
    open_scores(dataset, table, shard_hashes(dataset), [])
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(lambda shard: _sums(dataset, table, shard), dataset.committed()))
    identity, sums = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return identity, np.divide(sums, norms, out=np.full_like(sums, np.nan), where=norms > 0)


def _sums(dataset: Dataset, table: str, shard: int) -> Embedded:
    """The identities of one shard and the sums of their embeddings."""
    with dataset.storage.open(part_file(table, shard)) as file:
        parquet = pq.ParquetFile(file)
        if COLUMN not in parquet.schema_arrow.names:
            raise ValueError(f"the scores of {table} hold no embeddings; name a table of the scorer arcface")
        rows = parquet.read(columns=["identity", COLUMN])
    lists = rows.column(COLUMN).combine_chunks()
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    vectors = lists.drop_null().flatten().to_numpy().reshape(valid.sum(), -1).astype(np.float32)
    identity, owner = np.unique(rows.column("identity").to_numpy(), return_inverse=True)
    sums = np.zeros((len(identity), lists.type.list_size), np.float32)
    np.add.at(sums, owner[valid], vectors.reshape(-1, sums.shape[1]))
    return identity, sums
