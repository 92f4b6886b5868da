"""The interface of scorers, which compute numbers about an identity and its views from its pictures; limits are in policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, UInt8

from filters.config import RejectConfig, ScoreConfig
from geometry.cameras import Cameras
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.pictures import decode_picture
from manifests.reader import read_members
from manifests.scores import VIEW, WHOLE, Lineage, table_schema
from weights.embedded import beyond_embedded

Columns = Mapping[str, Any]
"""Numbers by column: one per view that the scorer reads for a column of views, one for a column of identities."""


@dataclass(frozen=True)
class ScorerContext:
    """The arguments that every scorer is opened with; each reads the options that concern it."""

    options: ScoreConfig | RejectConfig
    source: str
    """Name of the source that made the heads."""
    device: str = "cpu"
    prefix: str = "--"
    """First letters of the options of the command in messages, such as --reject. for early rejection."""

    def beyond_embedded(self, option: str, model: str) -> bool:
        """Whether the embedded model scores heads of a source it was not trained on; raises UserError if not allowed."""
        allow, prefix = self.options.allow_embedded, self.prefix
        return beyond_embedded(f"{prefix}{option}", model, self.source, allow, f"{prefix}allow-embedded")


@dataclass(frozen=True, eq=False)
class Subject:
    """One identity as a scorer reads it: its row of the identities table and the views that the scorer wants."""

    row: dict[str, Any]
    view: np.ndarray
    azimuth: Float[np.ndarray, " v"]
    """Degrees, as in the views table."""
    elevation: Float[np.ndarray, " v"]
    """Degrees."""
    cameras: Cameras
    pictures: dict[str, list[np.ndarray]]
    """Pixels of each view by member (rgb, alpha, normal), 8 bits per channel, sRGB for rgb."""

    def member(self, name: str) -> UInt8[np.ndarray, "v h w *c"]:
        return np.stack(self.pictures[name])


@runtime_checkable
class Scorer(Protocol):
    """Numbers about one head at a time. `prepare` runs in threads ahead of `score`, which runs in the worker's own thread."""

    table: str
    """Name of the table that the scorer writes."""
    columns: Sequence[pa.Field]
    """Columns of the table, made by `manifests.scores.column`."""
    members: Sequence[str]
    """Members of each view that the scorer reads: rgb, alpha, normal."""
    lineage: Lineage

    def wants(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        """The views that the scorer reads, by default all; its columns are null at the others."""
        return np.ones(len(azimuth), bool)

    def prepare(self, subject: Subject) -> Any:
        """The work that needs the CPU only: crops, resizing, or all of it."""
        ...

    def score(self, prepared: Any) -> Columns:
        """The numbers, from the result of `prepare`, which are that result by default."""
        return prepared


@runtime_checkable
class DatasetScorer(Protocol):
    """Numbers that compare heads with one another, computed from a finished table of another scorer."""

    table: str
    """Name of the table that the scorer writes."""
    reads: str
    """Name of the table that the scorer reads."""

    def score_dataset(self, dataset: Dataset) -> None:
        """Write the table; raises UserError if the table that it reads is missing or older than the shards."""
        ...


def wanted_views(scorer: Scorer, views: pa.Table) -> Bool[np.ndarray, " v"]:
    """Which of an identity's views a scorer reads."""
    return scorer.wants(views.column("azimuth").to_numpy(), views.column("elevation").to_numpy())


def make_subject(row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> Subject:
    """A subject from its row, the rows of its views, and their pictures."""
    c2w, K = (np.stack(views.column(name).to_numpy(zero_copy_only=False)) for name in ("c2w", "K"))
    cameras = Cameras(torch.from_numpy(c2w.reshape(-1, 4, 4).copy()), torch.from_numpy(K.reshape(-1, 3, 3).copy()))
    view, azimuth, elevation = (views.column(name).to_numpy() for name in ("view", "azimuth", "elevation"))
    return Subject(row, view, azimuth, elevation, cameras, pictures)


def prepare(
    scorer: Scorer,
    row: dict[str, Any],
    views: pa.Table,
    pictures: Mapping[str, Mapping[int, np.ndarray] | Sequence[np.ndarray]],
) -> Any:
    """A scorer's own `prepare` of one identity, from its rows of the tables and its pictures by member and row of `views`."""
    wanted = wanted_views(scorer, views)
    own = {name: [pictures[name][i] for i in np.flatnonzero(wanted).tolist()] for name in scorer.members}
    return scorer.prepare(make_subject(row, views.filter(pa.array(wanted)), own))


def read_pictures(dataset: Dataset, shard: int, views: pa.Table, member: str) -> list[UInt8[np.ndarray, "h w *c"]]:
    """Decode a member of some views; raises DamagedData naming the view whose picture does not decode."""
    (members,) = read_members(dataset, shard, views, member)
    keys = views.column("key").to_pylist()
    return [_decode(data, key, member) for key, data in zip(keys, members, strict=True)]


def _decode(data: bytes, key: str, member: str) -> UInt8[np.ndarray, "h w *c"]:
    try:
        return decode_picture(data, grey=member == "alpha")
    except ValueError as error:
        raise DamagedData(f"{key}.{member} {error}; spinset repair makes its shard again") from None


def identity_rows(scorer: Scorer, identity: int, views: pa.Table, numbers: Columns | None) -> pa.Table:
    """The rows of one identity: its own, then its views. Without numbers they are NaN; null where a column does not apply."""
    count = len(views) + 1
    is_own = np.arange(count) == 0
    wanted = np.concatenate([[False], wanted_views(scorer, views)])
    above = [views.column(name).combine_chunks() for name in ("azimuth", "elevation")]
    columns = [
        pa.array(np.full(count, identity)),
        pa.array(np.concatenate([[WHOLE], views.column("view").to_numpy()]).astype(np.int16)),
        *(pa.concat_arrays([pa.nulls(1, values.type), values]) for values in above),
    ]
    for field in scorer.columns:
        where = wanted if field.metadata[b"level"] == VIEW.encode() else is_own
        given = np.nan if numbers is None else numbers[field.name]
        spread = _vectors if pa.types.is_fixed_size_list(field.type) else _numbers
        columns.append(spread(field, where, np.asarray(given)))
    return pa.table(columns, schema=table_schema(scorer.columns))


def _numbers(field: pa.Field, where: Bool[np.ndarray, " r"], given: np.ndarray) -> pa.Array:
    """The numbers where they belong, null elsewhere."""
    assert given.ndim == 0 or len(given) == where.sum(), f"{field.name}: {len(given)} numbers for {where.sum()} rows"
    values = np.zeros(len(where), np.float32)
    values[where] = given
    return pa.array(values, field.type, mask=~where, from_pandas=False)


def _vectors(field: pa.Field, where: Bool[np.ndarray, " r"], given: Float[np.ndarray, "..."]) -> pa.Array:
    """The vectors where they belong, null elsewhere and where they are NaN."""
    values = np.full((len(where), field.type.list_size), np.nan, np.float16)
    values[where] = given
    missing = np.isnan(values).any(axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type, mask=pa.array(missing))
