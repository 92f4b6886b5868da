"""Scores a dataset: the config, what one worker does with a shard, and the job over all shards."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from filters.config import ScoreConfig
from filters.scorer import DatasetScorer, Scorer, ScorerContext, identity_rows, prepare, read_pictures, wanted_views
from filters.scorers import SCORERS
from jobs import pool
from jobs.devices import require_device, usable_cores
from jobs.ledger import Ledger
from jobs.progress import JobProgress
from jobs.units import Event, Unit
from manifests import schema
from manifests.dataset import Dataset
from manifests.embeddings import COLUMN as EMBEDDING
from manifests.embeddings import gather_embeddings
from manifests.errors import DamagedData
from manifests.scores import UNREADABLE, current_part, gather, table_schema, tar_sha256, write_part
from manifests.storage import Storage

AHEAD = 2
"""Identities prepared beyond the one that is scored, per thread."""


def open_scorers(config: ScoreConfig, source: str) -> tuple[list[Scorer], list[DatasetScorer]]:
    """The scorers of a job on heads of a source, weights loaded: those of single heads, and those of whole datasets.

    Raises:
        UserError: a file is missing or is not such a model, or an embedded model was not trained on these heads.
    """
    context = ScorerContext(config, source, config.device)
    opened = [import_module(SCORERS[name]).open_scorer(context) for name in config.scorers]
    return [s for s in opened if isinstance(s, Scorer)], [s for s in opened if isinstance(s, DatasetScorer)]


def score(config: ScoreConfig) -> list[str]:
    """Score what is not scored yet, then gather every table whose shards are all scored.

    Returns:
        One line per table that could not be gathered, with the shards that it lacks, and one per identity whose scores are
        NaN because a picture of it does not decode; nothing if all is scored.

    Raises:
        ScoresMismatch: a table of other weights, settings or another version exists; nothing was changed.
        UserError: bad weights, an embedded model that was not trained on these heads, or no table of arcface for duplicates.
    """
    if config.pool.ray == "local":
        require_device(config.device)
    dataset = Dataset(config.out)
    scorers, dataset_scorers = open_scorers(config, dataset.plan.source["name"])
    due = {shard: _due(dataset, shard, scorers, config.replace) for shard in dataset.committed()}
    dataset.storage.clear_leftovers()
    heads = {shard: dataset.done(shard)["outcomes"][schema.KEPT] for shard in due}
    pending = [shard for shard, tables in due.items() if tables]
    ledger = Ledger(dataset.storage, "score", lambda shard: not _due(dataset, shard, scorers, config.replace))
    with JobProgress(
        "score", sum(heads.values()), sum(heads[s] for s in due if not due[s]), items_of=heads.__getitem__
    ) as progress:
        pool.run(pending, partial(ScoreWorker, _absolute(config), due), config.pool, progress.update, ledger)
    if not dataset.committed():
        return ["no shard of the dataset is finished, so there is nothing to score"]
    lacking: dict[str, list[int]] = {}
    unreadable: dict[int, str] = {}
    for scorer in scorers:
        gathered = gather(dataset, scorer.table, scorer.lineage)
        if gathered.lacking:
            lacking[scorer.table] = gathered.lacking
            continue
        unreadable |= gathered.unreadable
        if EMBEDDING in (f.name for f in scorer.columns):
            gather_embeddings(dataset, scorer.table)
    for scorer in dataset_scorers:
        if scorer.reads not in lacking:
            scorer.score_dataset(dataset)
    return [
        *(f"{table}: shards {', '.join(map(str, shards))} were made since" for table, shards in lacking.items()),
        *(f"identity {k} has no scores: {reason}" for k, reason in sorted(unreadable.items())),
    ]


def _absolute(config: ScoreConfig) -> ScoreConfig:
    """The same config with absolute paths, which hold in the working folder of any worker."""
    out, clip, arcface = Storage(config.out).address, config.clip.absolute(), config.arcface.absolute()
    return replace(config, out=out, clip=clip, arcface=arcface)


def _due(dataset: Dataset, shard: int, scorers: Sequence[Scorer], replace: bool) -> list[str]:
    """The tables that lack a current part for a shard, or whose part lacks identities that may have been repaired since."""
    parts = {s.table: current_part(dataset, s.table, shard, s.lineage, replace) for s in scorers}
    return [table for table, about in parts.items() if about is None or UNREADABLE in about]


class ScoreWorker:
    """Scores shards, one identity at a time, while threads read, decode and prepare the next ones."""

    def __init__(self, config: ScoreConfig, due: Mapping[int, Sequence[str]]):
        """Load the models; `due` holds, by shard, the tables that lack a part."""
        torch.set_num_threads(config.pool.threads)
        self.dataset, self.due = Dataset(Storage(config.out)), due
        self.scorers, _ = open_scorers(config, self.dataset.plan.source["name"])
        threads = config.decoders or max(2, min(config.pool.threads, usable_cores()))
        self.ahead = AHEAD * threads
        self.executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        """Score one shard and commit a part of each table that lacks it."""
        scorers = [scorer for scorer in self.scorers if scorer.table in self.due[unit.index]]
        yield from score_shard(self.dataset, unit, scorers, self.executor, self.ahead)


def score_shard(
    dataset: Dataset, unit: Unit, scorers: Sequence[Scorer], executor: ThreadPoolExecutor, ahead: int
) -> Iterator[Event]:
    """Score the kept identities of a shard, `ahead` of which are prepared before the one that is scored.

    An identity whose pictures do not decode, or that the pool gave up because its workers died, gets NaN in every column.
    """
    shard, sha256 = unit.index, tar_sha256(dataset, unit.index)
    views = dataset.views(shard)
    of_identity = views.column("identity").to_numpy()
    kept = [row for row in dataset.identities(shard).to_pylist() if row["outcome"] == schema.KEPT]
    own = {row["identity"]: views.filter(pa.array(of_identity == row["identity"])) for row in kept}
    waiting = deque(kept)
    running: deque[Future[list[Any]]] = deque()
    tables: list[list[pa.Table]] = [[] for _ in scorers]
    unreadable: dict[int, str] = {}
    for identity in own:
        while waiting and len(running) <= ahead:
            row = waiting.popleft()
            alive = scorers if row["identity"] not in unit.skipped else []
            running.append(executor.submit(_prepare, dataset, shard, row, own[row["identity"]], alive))
        yield Event(shard, identity, "score", 0, 1)
        prepared = None
        try:
            prepared = running.popleft().result()
        except DamagedData as error:
            unreadable[identity] = str(error)
        for scorer, ready, table in zip(scorers, prepared or [None] * len(scorers), tables, strict=True):
            numbers = scorer.score(ready) if prepared else None
            table.append(identity_rows(scorer, identity, own[identity], numbers))
        yield Event(shard, identity, "done", 1, 1)
    for scorer, table in zip(scorers, tables, strict=True):
        rows = pa.concat_tables([table_schema(scorer.columns).empty_table(), *table])
        write_part(dataset, scorer.table, shard, rows, scorer.lineage, sha256, unreadable)


def _prepare(
    dataset: Dataset, shard: int, row: dict[str, Any], views: pa.Table, scorers: Sequence[Scorer]
) -> list[Any]:
    """Decode each picture once, for all scorers that want it, and let each prepare what it reads."""
    wanted = [wanted_views(scorer, views) for scorer in scorers]
    pictures: dict[str, dict[int, np.ndarray]] = {}
    for member in sorted({m for scorer in scorers for m in scorer.members}):
        need = np.logical_or.reduce([w for s, w in zip(scorers, wanted, strict=True) if member in s.members])
        decoded = read_pictures(dataset, shard, views.filter(pa.array(need)), member)
        pictures[member] = dict(zip(np.flatnonzero(need).tolist(), decoded, strict=True))
    return [prepare(scorer, row, views, pictures) for scorer in scorers]
