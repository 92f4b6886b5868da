"""One table of all views of a dataset, made once from the shards and memory-mapped by every process that reads them.

It is a cache: it may be deleted, and it is made again whenever the committed shards change. Its file has the layout of
safetensors, one array per column, so that only the pages of columns that are used are ever read.
"""

import hashlib
import json
import math
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int16, Int32, Int64

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError, damaged
from manifests.selection import Selection
from manifests.storage import THREADS, Storage
from manifests.tables import as_array

FILE = "index.safetensors"
FORMER = "index.arrow"
"""The file of an index of earlier versions."""
HEAD = 1 << 16
"""Bytes at the beginning of the file that hold its header, also with a hundred members."""

LENGTH, ALIGNMENT = 8, 8
"""Bytes of the number before the header, and of the steps in which the header is padded."""

_CAMERA = ("identity", "view", "azimuth", "elevation", "c2w", "K")
_SPAN = ("offset", "size")
_TYPES = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "F32": np.float32}
"""The names of types in safetensors."""


def _columns(members: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and the shape of one row of each column; wide types come first, so that all columns are aligned."""
    return {
        "identity": ("I64", ()),
        **{f"{member}.offset": ("I64", ()) for member in members},
        **{f"{member}.size": ("I32", ()) for member in members},
        "shard": ("I32", ()),
        "azimuth": ("F32", ()),
        "elevation": ("F32", ()),
        "c2w": ("F32", (4, 4)),
        "K": ("F32", (3, 3)),
        "view": ("I16", ()),
    }


@dataclass(frozen=True, eq=False)
class Index:
    """The views of all committed shards as columns, shard after shard; the arrays are read-only views of the mapped file."""

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
    """By member, the bytes of its data; 0 where it does not exist."""
    mapped: str | None
    """The file the columns are mapped from, by which the index is pickled; None if they are in memory."""

    def __len__(self) -> int:
        return len(self.identity)

    @cached_property
    def starts(self) -> Int64[np.ndarray, " m"]:
        """The row where each identity begins, and the number of rows."""
        return _starts(self.identity)

    def first_row(self, shard: int) -> int:
        """The row where a shard begins, or would begin."""
        # For a number of another type, numpy would convert the whole column.
        return int(np.searchsorted(self.shard, np.int32(shard)))

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
        judged, wanted = selection.judged_views, schema.view_codes(self.identity, self.view)
        at = np.searchsorted(judged, wanted)
        known = np.append(judged, -1)[at] == wanted
        if not known.all():
            raise UserError(
                f"selection {selection.name!r} does not know {(~known).sum()} of the {len(self)} views "
                f"(first: {self.key(int((~known).argmax()))}); {again}"
            )
        rows = np.flatnonzero(selection.keeps[at])
        if not len(rows):
            raise UserError(f"selection {selection.name!r} keeps none of the {len(self)} views")
        return Subset(self, rows, _starts(self.identity[rows]), selection.fingerprint)

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[Any, ...]]:
        assert self.mapped is not None, "an index in memory stays in its process"
        return _map, (self.mapped, self.fingerprint)


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
    records = [(done["files"][".views.parquet"]["sha256"], done["views"]) for done in dataset.records(shards)]
    hashes, views = zip(*records, strict=True)
    known = json.dumps([dataset.plan.fingerprint, list(zip(shards, hashes, strict=True))])
    fingerprint = hashlib.sha256(known.encode()).hexdigest()
    return _stored(dataset.storage, fingerprint) or _make(dataset, dict(zip(shards, views, strict=True)), fingerprint)


def _stored(storage: Storage, fingerprint: str) -> Index | None:
    """The index of the dataset, or the copy of this process; None if it is outdated, damaged or does not exist."""
    copy = _copy(storage, fingerprint)
    try:
        if copy.exists():
            return _map(str(copy), fingerprint)
        if storage.is_local:
            return _map(storage.path(FILE), fingerprint)
        # Only the head of an outdated one is fetched.
        places, _ = _header(storage.fs.cat_file(storage.path(FILE), start=0, end=min(HEAD, storage.size(FILE))))
        if places["__metadata__"]["fingerprint"] != fingerprint:
            return None
        part = copy.with_suffix(".part")
        storage.fs.get_file(storage.path(FILE), str(part))
        _map(str(part), fingerprint)  # raises if it was cut
        part.rename(copy)
        return _map(str(copy), fingerprint)
    except (FileNotFoundError, TypeError, LookupError, ValueError):  # a cache is made again
        return None


def _make(dataset: Dataset, views: Mapping[int, int], fingerprint: str) -> Index:
    """Make the index from the number of views of each shard; what cannot be written to the dataset is kept in a copy."""
    storage, copy = dataset.storage, _copy(dataset.storage, fingerprint)
    if not any(views.values()):
        raise UserError(f"{storage.url} has no views: every identity of its {len(views)} shards failed")
    try:
        with storage.writing(FILE) as scratch:
            _write(scratch, dataset, views, fingerprint)
            index = _map(str(scratch), fingerprint)  # which stays if another process commits one of more shards
            if not storage.is_local:
                os.link(scratch, copy)  # so that it need not be fetched
        with suppress(FileNotFoundError):
            storage.remove(FORMER)
        return replace(index, mapped=storage.path(FILE) if storage.is_local else str(copy))
    except OSError as error:
        problem = f"{storage.url} cannot be written ({error})"
        warnings.warn(f"{problem}: its index is kept in a temporary folder of each process", stacklevel=3)
    if not copy.exists():
        _write(copy, dataset, views, fingerprint)
    return _map(str(copy), fingerprint)


def _write(file: Path, dataset: Dataset, views: Mapping[int, int], fingerprint: str) -> None:
    """Write the index shard by shard, each at its place in the columns, so that it takes memory for a few shards only."""
    rows, begin, places = sum(views.values()), 0, {}
    for name, (kind, shape) in _columns(dataset.plan.member_names).items():
        end = begin + rows * math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
        places[name] = {"dtype": kind, "shape": [rows, *shape], "data_offsets": [begin, end]}
        begin = end
    about = {"fingerprint": fingerprint, "plan": dataset.plan.fingerprint}
    text = json.dumps({"__metadata__": about, **places}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    start = LENGTH + len(text)

    def write(shard: int, count: int, first: int) -> None:
        table = dataset.views(shard, _needed(dataset))
        if len(table) != count:
            name = dataset.file(shard, ".views.parquet")
            raise damaged(name, f"has {len(table)} rows, its shard {count} views", dataset.storage.url)
        for name, values in _arrays(table, shard, dataset.plan.member_names).items():
            column = start + places[name]["data_offsets"][0]
            _pwrite(out.fileno(), values, column + first * values.nbytes // len(values))

    with file.open("wb") as out:
        out.write(len(text).to_bytes(LENGTH, "little") + text)
        out.flush()
        firsts = accumulate(views.values(), initial=0)
        parts = [part for part in zip(views, views.values(), firsts, strict=False) if part[1]]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(write, *zip(*parts, strict=True)):
                pass


def _pwrite(descriptor: int, values: np.ndarray, at: int) -> None:
    """Write all of an array at a byte of a file, from any thread."""
    data = np.ascontiguousarray(values).data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def index_of(dataset: Dataset, shard: int, views: pa.Table) -> Index:
    """An index in memory of some rows of one shard's views table, which must have all of its columns."""
    about = {"fingerprint": "", "plan": dataset.plan.fingerprint}
    return _index(_arrays(views.flatten(), shard, dataset.plan.member_names), about, None)


def _needed(dataset: Dataset) -> list[str]:
    """The columns of the views tables that the index holds."""
    return [*_CAMERA, *(f"{member}.{part}" for member in dataset.plan.member_names for part in _SPAN)]


def _arrays(views: pa.Table, shard: int, members: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of the columns of the index from rows of a views table, whose structs are flattened."""
    arrays: dict[str, np.ndarray] = {"shard": np.full(len(views), shard, np.int32)}
    for name, (kind, shape) in _columns(members).items():
        if name == "shard":
            continue
        column = views.column(name).combine_chunks()
        plain = column.flatten() if shape else pc.fill_null(column, 0)
        arrays[name] = as_array(plain).astype(_TYPES[kind], copy=False).reshape(-1, *shape)
    return arrays


def _map(file: str, fingerprint: str) -> Index:
    """Map an index; raises ValueError, LookupError or TypeError if the file is not that of these shards."""
    with open(file, "rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    places, start = _header(data)
    about = places.pop("__metadata__")
    if about["fingerprint"] != fingerprint:
        raise UserError(f"{file} is an index of other shards")
    arrays = {
        name: np.frombuffer(data, _TYPES[at["dtype"]], math.prod(at["shape"]), start + at["data_offsets"][0]).reshape(
            at["shape"]
        )
        for name, at in places.items()
    }
    return _index(arrays, about, file)


def _header(data: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header of a file of arrays, which lie where it states after the byte that is returned with it."""
    start = LENGTH + int.from_bytes(data[:LENGTH], "little")
    return json.loads(data[LENGTH:start]), start


def _index(arrays: Mapping[str, np.ndarray], about: Mapping[str, str], mapped: str | None) -> Index:
    spans = {
        part: {n.removesuffix(f".{part}"): a for n, a in arrays.items() if n.endswith(f".{part}")} for part in _SPAN
    }
    plain = {name: arrays[name] for name in (*_CAMERA, "shard")}
    return Index(
        fingerprint=about["fingerprint"],
        plan=about["plan"],
        **plain,
        offset=spans["offset"],
        size=spans["size"],
        mapped=mapped,
    )


@cache
def _copies(process: int) -> "tempfile.TemporaryDirectory[str]":
    """The folder of a process for copies of indices; the variable TMPDIR sets its parent."""
    return tempfile.TemporaryDirectory(prefix="spinset-index-")


def _copy(storage: Storage, fingerprint: str) -> Path:
    return Path(_copies(os.getpid()).name) / hashlib.sha256(f"{storage.url} {fingerprint}".encode()).hexdigest()


def _starts(identity: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    changes = np.flatnonzero(np.diff(identity)) + 1
    return np.concatenate([[0], changes, [len(identity)]]).astype(np.int64)
