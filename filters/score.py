"""Scores a dataset: the config, what one worker does with a shard, and the job over all shards."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from tyro.conf import OmitArgPrefixes, Positional

from filters.rows import identity_rows, wanted_views
from filters.scorer import Scorer, make_subject, read_pictures
from filters.scorers.arcface import ArcFaceConfig, ArcFaceScorer
from filters.scorers.clip_janus import ClipConfig, ClipScorer
from filters.scorers.duplicates import score_duplicates
from filters.scorers.image import ImageScorer
from filters.scorers.mesh import MeshScorer
from jobs import pool
from jobs.devices import check_device, require_device
from jobs.pool import Event, PoolConfig, Unit
from jobs.progress import JobProgress
from manifests import schema
from manifests.dataset import Dataset
from manifests.embeddings import COLUMN as EMBEDDING
from manifests.embeddings import gather_embeddings
from manifests.errors import DamagedData, UserError
from manifests.scores import UNREADABLE, current_part, gather, table_schema, tar_sha256, write_part
from manifests.storage import Storage
from weights.embedded import beyond_embedded

SCORERS = ("mesh", "image", "clip_janus", "arcface", "duplicates")

AHEAD = 2
"""Identities prepared beyond the one that is scored, per thread."""


@dataclass(frozen=True)
class ScoreConfig:
    """Add score tables to a dataset; the same command resumes. Shards are read, never written."""

    out: Positional[str]
    """Folder or address of the dataset."""
    scorers: tuple[str, ...] = SCORERS
    """Any of mesh, image, clip_janus, arcface and duplicates (which reads the table of arcface)."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    allow_embedded: bool = False
    """Let the embedded models score heads that are not procedural; the tables record it."""
    device: str = "cpu"
    """Where the models run: cpu, cuda, or cuda:N for the GPU of index N."""
    decoders: int = 0
    """Threads that read and decode ahead of the model; 0 is one per core of a worker, at least two."""
    replace: bool = False
    """Score anew what other weights, settings or versions scored."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.scorers if name not in SCORERS]:
            raise UserError(f"--scorers holds {unknown[0]!r}; there are {', '.join(SCORERS)}")
        if not self.scorers or len(set(self.scorers)) < len(self.scorers):
            raise UserError("--scorers must name one scorer or more, each once")
        check_device(self.device, self.pool.gpus_per_worker)
        if self.decoders < 0:
            raise UserError(f"--decoders is {self.decoders}; it must be at least 0")


def open_scorers(config: ScoreConfig, source: str) -> list[Scorer]:
    """The scorers of a job on heads of a source, weights loaded.

    Raises:
        UserError: a file is missing or is not such a model, or an embedded model does not know these heads.
    """
    models = {"clip_janus": ("--clip.model", config.clip.model), "arcface": ("--arcface.model", config.arcface.model)}
    # All are asked before the first is loaded, which takes seconds.
    allowed = {
        name: beyond_embedded(option, model, source, config.allow_embedded)
        for name, (option, model) in models.items()
        if name in config.scorers
    }
    makers = {
        "mesh": MeshScorer,
        "image": ImageScorer,
        "clip_janus": lambda: ClipScorer(config.clip, config.device, allowed["clip_janus"]),
        "arcface": lambda: ArcFaceScorer(config.arcface, config.device, allowed["arcface"]),
    }
    return [makers[name]() for name in config.scorers if name in makers]


def score(config: ScoreConfig) -> list[str]:
    """Score what is not scored yet, then gather every table whose shards are all scored.

    Returns:
        One line per table that could not be gathered, with the shards that it lacks, and one per identity whose scores are
        NaN because a picture of it does not decode; nothing if all is scored.

    Raises:
        ScoresMismatch: a table is there that something else made; nothing was touched.
        UserError: bad weights, embedded models that do not know these heads, or duplicates without the table of arcface.
    """
    if config.pool.ray == "local":
        require_device(config.device)
    dataset = Dataset(config.out)
    scorers = open_scorers(config, dataset.plan.source["name"])
    due = {shard: _due(dataset, shard, scorers, config.replace) for shard in dataset.committed()}
    dataset.storage.clear_leftovers()
    pending = [shard for shard, tables in due.items() if tables]
    heads = {shard: dataset.done(shard)["outcomes"][schema.KEPT] for shard in due}
    with JobProgress("score", sum(heads.values()), sum(heads[s] for s in due if s not in pending)) as progress:
        pool.run(pending, partial(ScoreWorker, _absolute(config)), config.pool, progress.update)
    if not dataset.committed():
        return ["no shard of the dataset is finished, so there is nothing to score"]
    lacking, unreadable = {}, {}
    for scorer in scorers:
        if (found := gather(dataset, scorer.table, scorer.lineage)) is not None:
            unreadable |= found
        else:
            parts = {s: current_part(dataset, scorer.table, s, scorer.lineage) for s in dataset.committed()}
            lacking[scorer.table] = [shard for shard, about in parts.items() if about is None]
            continue
        if EMBEDDING in (f.name for f in scorer.columns):
            gather_embeddings(dataset, scorer.table)
    if "duplicates" in config.scorers and config.arcface.table not in lacking:
        score_duplicates(dataset, config.arcface.table)
    return [
        *(f"{table}: shards {', '.join(map(str, shards))} were made since" for table, shards in lacking.items()),
        *(f"identity {k} has no scores: {reason}" for k, reason in sorted(unreadable.items())),
    ]


def _absolute(config: ScoreConfig) -> ScoreConfig:
    """The same, with paths that hold wherever a worker of a running cluster stands."""
    storage = Storage(config.out)
    out = storage.root if storage.is_local else config.out
    return replace(config, out=out, clip=config.clip.absolute(), arcface=config.arcface.absolute())


def _due(dataset: Dataset, shard: int, scorers: Sequence[Scorer], replace: bool) -> list[str]:
    """The tables that lack a current part for a shard, or whose part lacks identities that may have been repaired since."""
    parts = {s.table: current_part(dataset, s.table, shard, s.lineage, replace) for s in scorers}
    return [table for table, about in parts.items() if about is None or UNREADABLE in about]


class ScoreWorker:
    """Scores shards, one identity at a time, while threads read, decode and prepare the next ones."""

    def __init__(self, config: ScoreConfig):
        torch.set_num_threads(config.pool.threads)
        self.config, self.dataset = config, Dataset(Storage(config.out))
        self.scorers = open_scorers(config, self.dataset.plan.source["name"])
        self.threads = config.decoders or max(2, min(config.pool.threads, os.cpu_count() or 1))
        self.beside = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, unit: Unit) -> Iterator[Event]:
        """Score one shard and commit a part of each table that lacks it."""
        due = _due(self.dataset, unit.index, self.scorers, self.config.replace)
        yield from score_shard(
            self.dataset, unit, [s for s in self.scorers if s.table in due], self.beside, AHEAD * self.threads
        )


def score_shard(
    dataset: Dataset, unit: Unit, scorers: Sequence[Scorer], beside: ThreadPoolExecutor, ahead: int
) -> Iterator[Event]:
    """Score the kept identities of a shard.

    An identity whose pictures do not decode, or that was fatal to its workers, gets NaN everywhere.
    """
    shard, sha256 = unit.index, tar_sha256(dataset, unit.index)
    views = dataset.views(shard)
    of_identity = views.column("identity").to_numpy()
    kept = [row for row in dataset.identities(shard).to_pylist() if row["outcome"] == schema.KEPT]

    def own(row: dict[str, Any]) -> pa.Table:
        return views.filter(pa.array(of_identity == row["identity"]))

    waiting = deque(kept)
    running: deque[Future[list[Any]]] = deque()
    tables: list[list[pa.Table]] = [[] for _ in scorers]
    unreadable: dict[int, str] = {}
    for row in kept:
        while waiting and len(running) <= ahead:
            following = waiting.popleft()
            alive = scorers if following["identity"] not in unit.condemned else []
            running.append(beside.submit(_prepare, dataset, shard, following, own(following), alive))
        yield Event(shard, row["identity"], "score", 0, 1)
        prepared = None
        try:
            prepared = running.popleft().result()
        except DamagedData as error:
            unreadable[row["identity"]] = str(error)
        for scorer, ready, table in zip(scorers, prepared or [None] * len(scorers), tables, strict=True):
            numbers = scorer.score(ready) if prepared else None
            table.append(identity_rows(scorer, row["identity"], own(row), numbers))
        yield Event(shard, row["identity"], "done", 1, 1)
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
    prepared = []
    for scorer, want in zip(scorers, wanted, strict=True):
        own = {m: [pictures[m][i] for i in np.flatnonzero(want).tolist()] for m in scorer.members}
        prepared.append(scorer.prepare(make_subject(row, views.filter(pa.array(want)), own)))
    return prepared
