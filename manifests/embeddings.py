"""Identity embeddings: one unit vector per identity, the normalised sum of the embeddings of its frontal views."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.scores import FOLDER, SCORE_AGAIN, current_part, open_scores, part_file, shard_hashes, some_of
from manifests.tables import open_parquet, parquet_bytes, read_parquet, reading

COLUMN = "embedding"
THREADS = 8

_META = b"spinset.embeddings"

Embedded = tuple[Int64[np.ndarray, " i"], Float32[np.ndarray, "i d"]]


def mean_embeddings(dataset: Dataset, table: str) -> Embedded:
    """All identities in the order of the shards, and their embeddings; NaN for identities without one.

    Raises:
        UserError: there is no such table, it does not fit the shards, or it holds no embeddings.
    """
    origin = _origin(dataset, table)
    file = embeddings_file(table)
    if dataset.storage.exists(file):
        rows = read_parquet(dataset.storage, file, repair=SCORE_AGAIN)
        if rows.schema.metadata.get(_META) == origin:
            vectors = rows.column(COLUMN).combine_chunks()
            return rows.column("identity").to_numpy(), vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
    return _from_parts(dataset, table)


def recogniser_of(dataset: Dataset, table: str) -> str:
    """SHA-256 of the weights that made the embeddings of a table; empty if the table records none."""
    return open_scores(dataset, table, shard_hashes(dataset), []).lineage.weights_sha256 or ""


def embeddings_of(dataset: Dataset, table: str, identities: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"]:
    """The embeddings of some identities, in their order; NaN for identities without one.

    Raises:
        UserError: as `mean_embeddings`, or the table does not hold one of the identities.
    """
    known, vectors = mean_embeddings(dataset, table)
    if missing := np.setdiff1d(identities, known).tolist():
        raise UserError(
            f"the embeddings of {table} lack identities {some_of(missing)}; run spinset score --scorers arcface again"
        )
    by_identity = np.argsort(known)
    return vectors[by_identity[np.searchsorted(known, identities, sorter=by_identity)]]


def gather_embeddings(dataset: Dataset, table: str) -> None:
    """Write the embeddings of identities to one small file, so that readers need not read those of every view."""
    identity, vectors = _from_parts(dataset, table)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    rows = pa.table({"identity": identity, COLUMN: lists})
    dataset.storage.write(embeddings_file(table), parquet_bytes(rows, {_META: _origin(dataset, table)}))


def embeddings_file(table: str) -> str:
    return f"{FOLDER}/{table}/embeddings.parquet"


def _origin(dataset: Dataset, table: str) -> bytes:
    """A hash of the shards and of the lineage of a table that is up to date."""
    hashes = shard_hashes(dataset)
    lineage = open_scores(dataset, table, hashes, []).lineage
    return hashlib.sha256(json.dumps([hashes, asdict(lineage)], sort_keys=True).encode()).hexdigest().encode()


def _from_parts(dataset: Dataset, table: str) -> Embedded:
    lineage = open_scores(dataset, table, shard_hashes(dataset), []).lineage
    for shard in dataset.committed():
        if current_part(dataset, table, shard, lineage, replace=True) is None:
            raise UserError(
                f"{part_file(table, shard)} and the table {table} have different lineages; run spinset score --replace again"
            )
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(lambda shard: _sums(dataset, table, shard), dataset.committed()))
    identity, sums = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return identity, np.divide(sums, norms, out=np.full_like(sums, np.nan), where=norms > 0)


def _sums(dataset: Dataset, table: str, shard: int) -> Embedded:
    """The identities of one shard and the sums of their embeddings."""
    parquet = open_parquet(dataset.storage, part_file(table, shard), SCORE_AGAIN)
    if COLUMN not in parquet.schema_arrow.names:
        raise UserError(f"the scores of {table} hold no embeddings; name a table of the scorer arcface")
    with reading(dataset.storage, part_file(table, shard), SCORE_AGAIN):
        rows = parquet.read(columns=["identity", COLUMN])
    lists = rows.column(COLUMN).combine_chunks()
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    vectors = lists.drop_null().flatten().to_numpy().reshape(-1, lists.type.list_size).astype(np.float32)
    identity, owner = np.unique(rows.column("identity").to_numpy(), return_inverse=True)
    sums = np.zeros((len(identity), lists.type.list_size), np.float32)
    np.add.at(sums, owner[valid], vectors.reshape(-1, sums.shape[1]))
    return identity, sums
