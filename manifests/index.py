"""One table of all views of a dataset, made once from the shards and memory-mapped by every process that reads them.

It is a cache: it may be deleted, and it is made again whenever the committed shards change.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int16, Int32, Int64

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.selection import Selection
from manifests.tables import arrow_buffer, as_array

FILE = "index.arrow"
THREADS = 16

_CAMERA = ("identity", "view", "azimuth", "elevation", "c2w", "K")
_SPAN = (("offset", pa.int64()), ("size", pa.int32()))


def _schema(members: Sequence[str]) -> pa.Schema:
    """One row per view, shard after shard in the order of the shards; a member that is not there has size 0."""
    camera = [schema.VIEWS.field(name) for name in _CAMERA]
    spans = [pa.field(f"{member}.{part}", kind) for member in members for part, kind in _SPAN]
    return pa.schema([*camera, pa.field("shard", pa.int32()), *spans])


_META = b"spinset.index"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Index:
    """The views of all committed shards as columns; the arrays are read-only views of the mapped file."""

    fingerprint: str
    """A hash of the plan and of the views tables of the committed shards."""
    plan: str
    """The fingerprint of the plan."""
    identity: Int64[np.ndarray, " n"]
    view: Int16[np.ndarray, " n"]
    shard: Int32[np.ndarray, " n"]
    azimuth: Float32[np.ndarray, " n"]
    elevation: Float32[np.ndarray, " n"]
    c2w: Float32[np.ndarray, "n 4 4"]
    K: Float32[np.ndarray, "n 3 3"]
    offset: dict[str, Int64[np.ndarray, " n"]]
    """By member, the byte of the tar where its data begins."""
    size: dict[str, Int32[np.ndarray, " n"]]
    """By member, the bytes of its data."""
    mapped: str | None
    """The file the columns are mapped from, by which the index is pickled; None if they are in memory."""

    def __len__(self) -> int:
        return len(self.identity)

    @cached_property
    def starts(self) -> Int64[np.ndarray, " m"]:
        """The row where each identity begins, and the number of rows."""
        return _starts(self.identity)

    def key(self, row: int) -> str:
        """The key of a view."""
        return schema.sample_key(int(self.identity[row]), int(self.view[row]))

    @property
    def shard_sizes(self) -> Int64[np.ndarray, " s"]:
        """Bytes of each shard, up to the end of its last member."""
        last = np.append(np.flatnonzero(np.diff(self.shard)), len(self) - 1)
        return np.max([self.offset[m][last] + self.size[m][last] for m in self.offset], 0)

    def select(self, selection: Selection | None = None) -> "Subset":
        """The rows that a selection keeps, or all.

        Raises:
            UserError: it was made for another dataset or before some shards, or keeps nothing.
        """
        if selection is None:
            return Subset(self, np.arange(len(self)), self.starts, None)
        again = "run spinset select again"
        if selection.dataset != self.plan:
            raise UserError(f"selection {selection.name!r} was made for another dataset; {again}")
        known = schema.is_among(selection.judged_views, self.identity, self.view)
        if not known.all():
            raise UserError(
                f"selection {selection.name!r} does not know {(~known).sum()} of the {len(self)} views "
                f"(first: {self.key(int((~known).argmax()))}); {again}"
            )
        rows = np.flatnonzero(schema.is_among(selection.kept_views, self.identity, self.view))
        if not len(rows):
            raise UserError(f"selection {selection.name!r} keeps none of the {len(self)} views")
        return Subset(self, rows, _starts(self.identity[rows]), selection.fingerprint)

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[Any, ...]]:
        if self.mapped is not None:
            return _map, (self.mapped, self.fingerprint)
        return Index, tuple(getattr(self, name) for name in self.__dataclass_fields__)


@dataclass(frozen=True, eq=False)
class Subset:
    """Some views of an index, identity after identity."""

    index: Index
    rows: Int64[np.ndarray, " n"]
    """Rows of the index, ascending."""
    starts: Int64[np.ndarray, " m"]
    """The position in `rows` where each identity begins, and the number of rows."""
    fingerprint: str | None
    """The fingerprint of the selection; None for the whole dataset."""

    @cached_property
    def identities(self) -> Int64[np.ndarray, " i"]:
        return self.index.identity[self.rows[self.starts[:-1]]]

    def rows_of(self, position: int) -> Int64[np.ndarray, " v"]:
        """The rows of the identity at a position of `identities`."""
        return self.rows[self.starts[position] : self.starts[position + 1]]

    def restricted_to(self, mask: Bool[np.ndarray, " i"]) -> "Subset":
        """The subset of the identities where `mask` is true."""
        rows = self.rows[np.repeat(mask, np.diff(self.starts))]
        return Subset(self.index, rows, _starts(self.index.identity[rows]), self.fingerprint)


def open_index(dataset: Dataset) -> Index:
    """Map the index of a dataset, which is made first if there is none or if the shards have changed.

    Raises:
        UserError: no shard is committed yet.
        DamagedData: a commit record is damaged.
    """
    shards = dataset.committed()
    if not shards:
        raise UserError(f"{dataset.storage.url} has no finished shard; make some with spinset generate")
    hashes = [done["files"][".views.parquet"]["sha256"] for done in _threads(dataset.done, shards)]
    known = json.dumps([dataset.plan.fingerprint, list(zip(shards, hashes, strict=True))])
    fingerprint = hashlib.sha256(known.encode()).hexdigest()
    return _stored(dataset, fingerprint) or _make(dataset, shards, fingerprint)


def _stored(dataset: Dataset, fingerprint: str) -> Index | None:
    storage = dataset.storage
    if not storage.exists(FILE):
        return None
    try:
        if storage.is_local:
            return _map(storage.path(FILE), fingerprint)
        return _open(arrow_buffer(storage.read(FILE)), fingerprint, None)
    except (pa.ArrowException, TypeError, LookupError, ValueError):  # outdated or damaged: a cache is made again
        return None


def _make(dataset: Dataset, shards: list[int], fingerprint: str) -> Index:
    members = dataset.plan.member_names
    columns = [*_CAMERA, *(f"{member}.{part}" for member in members for part, _ in _SPAN)]
    table = pa.concat_tables(_threads(lambda shard: _rows(dataset.views(shard, columns), shard, members), shards))
    if not len(table):
        raise UserError(f"{dataset.storage.url} has no views: every identity of its {len(shards)} shards failed")
    batch = _batch(dataset, table, fingerprint)
    try:
        with (
            dataset.storage.writing(FILE) as scratch,
            pa.OSFile(str(scratch), "wb") as file,
            pa.ipc.new_file(file, batch.schema) as writer,
        ):
            writer.write(batch)
    except OSError as error:
        problem = f"{dataset.storage.url} cannot be written ({error})"
        warnings.warn(f"{problem}: its index is kept in memory, and every process makes its own", stacklevel=3)
    return _stored(dataset, fingerprint) or _index(batch, None)


def index_of(dataset: Dataset, shard: int, views: pa.Table) -> Index:
    """An index in memory of some rows of one shard's views table, which must have all of its columns."""
    return _index(_batch(dataset, _rows(views.flatten(), shard, dataset.plan.member_names), ""), None)


def _batch(dataset: Dataset, rows: pa.Table, fingerprint: str) -> pa.RecordBatch:
    about = {"fingerprint": fingerprint, "plan": dataset.plan.fingerprint}
    return rows.replace_schema_metadata({_META: json.dumps(about)}).combine_chunks().to_batches()[0]


def _rows(views: pa.Table, shard: int, members: Sequence[str]) -> pa.Table:
    """Rows of the index from rows of a views table, whose structs are flattened."""
    columns = [views.column(name) for name in _CAMERA]
    spans = [pc.fill_null(views.column(f"{member}.{part}"), 0) for member in members for part, _ in _SPAN]
    numbers, rows = pa.array(np.full(len(views), shard, np.int32)), _schema(members)
    return pa.table([*columns, numbers, *spans], names=rows.names).cast(rows)


def _map(file: str, fingerprint: str) -> Index:
    with pa.memory_map(file) as source:
        return _open(source, fingerprint, file)


def _open(source: Any, fingerprint: str, mapped: str | None) -> Index:
    index = _index(pa.ipc.open_file(source).get_batch(0), mapped)
    if index.fingerprint != fingerprint:
        raise UserError(f"{mapped or FILE} is an index of other shards")
    return index


def _index(batch: pa.RecordBatch, mapped: str | None) -> Index:
    """The columns of a batch as arrays, without a copy."""
    about = json.loads(batch.schema.metadata[_META])
    plain = {name: as_array(batch.column(name)) for name in batch.schema.names if name not in ("c2w", "K")}
    return Index(
        fingerprint=about["fingerprint"],
        plan=about["plan"],
        **{name: plain[name] for name in ("identity", "view", "shard", "azimuth", "elevation")},
        c2w=as_array(batch.column("c2w").flatten()).reshape(-1, 4, 4),
        K=as_array(batch.column("K").flatten()).reshape(-1, 3, 3),
        offset={name.removesuffix(".offset"): array for name, array in plain.items() if name.endswith(".offset")},
        size={name.removesuffix(".size"): array for name, array in plain.items() if name.endswith(".size")},
        mapped=mapped,
    )


def _starts(identity: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    changes = np.flatnonzero(np.diff(identity)) + 1
    return np.concatenate([[0], changes, [len(identity)]]).astype(np.int64)


def _threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))
