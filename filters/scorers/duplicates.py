"""Scores of similarity between identities: frontal embeddings compared across the whole dataset, after arcface."""

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from filters.scorer import ScorerContext
from manifests.dataset import Dataset
from manifests.embeddings import mean_embeddings
from manifests.errors import UserError
from manifests.scores import (
    IDENTITY,
    WHOLE,
    Lineage,
    Scores,
    column,
    open_scores,
    shard_hashes,
    table_schema,
    write_whole,
)  # fmt: skip

BLOCK = 4096
"""Rows that are compared with all others at a time; 4096 rows of 10,000 identities are 160 MB of cosines."""

COLUMNS = (
    column("cosine", IDENTITY, "highest cosine of the mean embedding with that of another identity"),
    column("nearest", IDENTITY, "that identity", pa.int64()),
    column(
        "earlier_cosine", IDENTITY, "the same among earlier identities only, so that a limit keeps one of each pair"
    ),
)


@dataclass(frozen=True)
class DuplicatesScorer:
    """For each identity, the most similar other one by the mean embeddings of an arcface table."""

    reads: str
    table: str = "duplicates"

    def score_dataset(self, dataset: Dataset) -> None:
        """Write the table; raises UserError if the arcface table is missing or does not cover all shards."""
        try:
            scores = open_scores(dataset, self.reads, shard_hashes(dataset))
        except ValueError as error:
            raise UserError(f"duplicates compares the embeddings of {self.reads}: {error}") from None
        identity, means = mean_embeddings(dataset, self.reads)
        cosine, nearest, earlier = nearest_others(means)
        own = {"cosine": cosine, "nearest": np.where(nearest >= 0, identity[nearest], -1), "earlier_cosine": earlier}
        lineage = Lineage("duplicates", 1, scores.lineage.weights_sha256, {"arcface": asdict(scores.lineage)})
        write_whole(dataset, self.table, _rows(scores, identity, own), lineage)


def open_scorer(context: ScorerContext) -> DuplicatesScorer:
    """The scorer of the arcface table that the options name."""
    return DuplicatesScorer(context.options.arcface.table)


def nearest_others(
    means: Float32[np.ndarray, "b d"],
) -> tuple[Float32[np.ndarray, " b"], Int64[np.ndarray, " b"], Float32[np.ndarray, " b"]]:
    """The highest cosine of each row with another, the index of that row, and the highest cosine with an earlier row.

    A row of NaN gets NaN and is near no other; without another row, the cosine and the index are -1.
    """
    known = ~np.isnan(means[:, 0])
    vectors = np.nan_to_num(means)
    cosine, earlier = (np.full(len(means), -1, np.float32) for _ in range(2))
    nearest = np.full(len(means), -1, np.int64)
    for first in range(0, len(means), BLOCK):
        rows = np.arange(first, min(first + BLOCK, len(means)))
        block = np.asarray(vectors[rows] @ vectors.T)
        block[:, ~known] = -2
        block[rows - first, rows] = -2
        best = block.argmax(axis=1)
        found = block[rows - first, best] > -2
        cosine[rows[found]], nearest[rows[found]] = block[found, best[found]], best[found]
        block[rows[:, None] < np.arange(len(means))] = -1
        earlier[rows] = np.maximum(block.max(axis=1), -1)
    cosine[~known], nearest[~known], earlier[~known] = np.nan, -1, np.nan
    return cosine, nearest, earlier


def _rows(scores: Scores, identity: np.ndarray, own: dict[str, np.ndarray]) -> pa.Table:
    """The rows of the arcface table, with the columns of this table."""
    is_own = scores.rows.column("view").to_numpy() == WHOLE
    assert np.array_equal(scores.rows.column("identity").to_numpy()[is_own], identity)
    place = pa.array(np.cumsum(is_own) - 1, mask=~is_own)
    columns = {name: scores.rows.column(name) for name in ("identity", "view", "azimuth", "elevation")}
    columns |= {f.name: pa.array(own[f.name], f.type).take(place) for f in COLUMNS}
    return pa.table(columns, schema=table_schema(COLUMNS))
