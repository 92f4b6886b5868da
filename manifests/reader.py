"""Reads members of views from shards: only the bytes that are needed, and neighbouring members in one read."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from manifests.cache import ShardCache, tar_file
from manifests.dataset import Dataset
from manifests.errors import DamagedData, MissingFile, damaged
from manifests.index import Index, index_of
from manifests.shards import member_name
from manifests.storage import Storage

OPEN_FILES = 128
WASTE = 1 / 8
"""Largest share of unneeded bytes in a read that joins members."""


class ByteRange(NamedTuple):
    """Bytes of one shard that are read at once, for the requested members from `first` up to but excluding `last`."""

    shard: int
    begin: int
    end: int
    first: int
    last: int


def merged_ranges(shards: Iterable[int], offsets: Iterable[int], sizes: Iterable[int]) -> list[ByteRange]:
    """The ranges to read for members, sorted by shard and offset; those that are close enough together share one."""
    found: list[ByteRange] = []
    needed = wasted = 0
    for k, (shard, offset, size) in enumerate(zip(shards, offsets, sizes, strict=True)):
        before = found[-1] if found else None
        gap = max(0, offset - before.end) if before else 0
        if before and shard == before.shard and wasted + gap <= (needed + size) * WASTE:
            needed, wasted = needed + size, wasted + gap
            found[-1] = ByteRange(shard, before.begin, max(before.end, offset + size), before.first, k + 1)
        else:
            needed, wasted = size, 0
            found.append(ByteRange(shard, offset, offset + size, k, k + 1))
    return found


class OpenFile:
    """An open file that is closed when its last reader, in any thread, drops it."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # A default argument, because at exit the globals of a module may be deleted before its objects.
        close(self.descriptor)


class Reader:
    """Reads members by their rows in the index, from any number of threads; each process opens its own files."""

    def __init__(self, dataset: Dataset, index: Index, cache: ShardCache | None = None):
        self.url, self.is_local, self.extensions = dataset.storage.url, dataset.storage.is_local, dataset.plan.members
        self.index, self.cache = index, cache
        self.needed = self.fetched = 0
        """Bytes that were requested and bytes that were read; exact while only one thread reads."""

    def read(self, wants: Mapping[str, Int[np.ndarray, " n"]]) -> dict[str, list[bytes]]:
        """The members of some rows of the index, each in the order of its rows.

        Raises:
            DamagedData: a shard ends before a member does.
            MissingFile: a shard is no longer there.
        """
        rows = np.concatenate(list(wants.values()))
        offset = np.concatenate([self.index.offset[name][own] for name, own in wants.items()])
        size = np.concatenate([self.index.size[name][own] for name, own in wants.items()])
        names = [name for name, own in wants.items() for _ in own]
        shard = self.index.shard[rows]
        order = np.lexsort((offset, shard))
        spans = merged_ranges(shard[order].tolist(), offset[order].tolist(), size[order].tolist())
        members: list[bytes] = [b""] * len(rows)
        positions, starts, sizes = order.tolist(), offset.tolist(), size.tolist()
        for span, data in zip(spans, self._fetch(spans), strict=True):
            self.fetched += len(data)
            for k in positions[span.first : span.last]:
                start = starts[k] - span.begin
                # A slice of all bytes is the same object in CPython, so a member that was read alone is not copied.
                members[k] = data[start : start + sizes[k]]
                if len(members[k]) < sizes[k]:
                    reason = (
                        f"is cut: the shard ends at byte {span.begin + len(data)}, the member at {starts[k] + sizes[k]}"
                    )
                    raise self.bad(names[k], int(rows[k]), reason)
        self.needed += int(size.sum())
        in_order = iter(members)
        return {name: [next(in_order) for _ in own] for name, own in wants.items()}

    def bad(self, member: str, row: int, problem: str) -> DamagedData:
        """The error that names a member."""
        name = member_name(self.index.key(row), self.extensions[member])
        return damaged(tar_file(int(self.index.shard[row])), problem, self.url, member=name, row=row)

    def _fetch(self, spans: list[ByteRange]) -> Iterable[bytes]:
        if self.cache is not None:
            return self._cached(spans)
        return self._local(spans) if self.is_local else self._ranges(spans)

    def _local(self, spans: list[ByteRange]) -> Iterator[bytes]:
        for shard, own in groupby(spans, attrgetter("shard")):
            with self._present(shard):
                file = self._files(shard)
            yield from (_read(file.descriptor, span) for span in own)

    def _cached(self, spans: list[ByteRange]) -> Iterator[bytes]:
        """Read shards from the cache, which may drop them afterwards, so no file stays open."""
        assert self.cache is not None
        for shard, own in groupby(spans, attrgetter("shard")):
            with self._present(shard):
                file = self.cache.open(shard)
            with file:
                yield from [_read(file.fileno(), span) for span in own]

    def _ranges(self, spans: list[ByteRange]) -> list[bytes]:
        """Read byte ranges of remote shards, all of them at once."""
        storage = Storage(self.url)  # one per thread, because clients of object stores may be bound to a thread
        paths = [storage.path(tar_file(span.shard)) for span in spans]
        begins, ends = [span.begin for span in spans], [span.end for span in spans]
        found = storage.fs.cat_ranges(paths, begins, ends, on_error="return")
        for k, (span, data) in enumerate(zip(spans, found, strict=True)):
            if isinstance(data, Exception):
                # Alone, which repeats what may pass.
                with self._present(span.shard):
                    found[k] = storage.fs.cat_file(paths[k], start=span.begin, end=span.end)
        return found

    @contextmanager
    def _present(self, shard: int) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingFile(
                f"{tar_file(shard)} of {self.url} was removed after the run began; spinset generate makes it again"
            ) from error

    @cached_property
    def _files(self) -> Callable[[int], OpenFile]:
        """Opens a shard; the most recently used ones stay open."""
        return lru_cache(OPEN_FILES)(partial(_opened, Storage(self.url)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_files"}


def read_members(dataset: Dataset, shard: int, views: pa.Table, *names: str) -> Iterator[list[bytes]]:
    """Some members (rgb, alpha, normal, json) of the views in `views`, rows of the views table of a shard.

    Returns:
        One list per name, in the order of the rows.

    Raises:
        DamagedData: the shard ends before a member does.
    """
    if not len(views):
        return iter([[] for _ in names])
    rows = np.arange(len(views))
    found = Reader(dataset, index_of(dataset, shard, views)).read(dict.fromkeys(names, rows))
    return (found[name] for name in names)


def _opened(storage: Storage, shard: int) -> OpenFile:
    return OpenFile(os.open(storage.path(tar_file(shard)), os.O_RDONLY))


def _read(descriptor: int, span: ByteRange) -> bytes:
    """The bytes of a range, fewer only if the file is shorter."""
    data = os.pread(descriptor, span.end - span.begin, span.begin)
    while len(data) < span.end - span.begin:
        more = os.pread(descriptor, span.end - span.begin - len(data), span.begin + len(data))
        if not more:
            break
        data += more
    return data
