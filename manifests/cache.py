"""A bounded copy of remote shards on a local disk, shared by all processes of a machine.

Shards appear by rename and are dropped least recently used first. Who fetches one holds a file lock, which the kernel
gives back when its owner dies; there is no daemon and nothing to clean up. The bound holds for whole shards; those on
their way come on top.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from manifests import schema
from manifests.storage import Storage

LOOK_AHEAD = 2
"""Shards that are fetched ahead at the same time."""


def tar_file(shard: int) -> str:
    return f"{schema.SHARDS}/{schema.shard_name(shard)}.tar"


class ShardCache:
    """The shards of one dataset, as one index knows them, in a folder that other datasets may share."""

    def __init__(self, url: str, fingerprint: str, folder: str, bound: int):
        self.url, self.bound = url, bound
        # A folder of its own, for all shards in it may be dropped.
        self.folder = Path(folder) / "spinset-cache"
        self.own = self.folder / hashlib.sha256(f"{url} {fingerprint}".encode()).hexdigest()[:16]

    def open(self, shard: int) -> BinaryIO:
        """The shard as a local file, fetched if it is not there; it stays readable when the cache drops it."""
        path = self.own / f"{schema.shard_name(shard)}.tar"
        while True:
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                self.fetch(shard)
                continue
            with suppress(FileNotFoundError):  # dropped since, but open
                now = time.time_ns()  # the kernel's own clock ticks too slowly to tell who was last
                os.utime(path, ns=(now, now))
            return file

    def fetch(self, shard: int) -> None:
        """Bring a shard; raises FileNotFoundError if the dataset has it no more."""
        path = self.own / f"{schema.shard_name(shard)}.tar"
        self.own.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if path.exists():
                return
            storage, scratch = Storage(self.url), path.with_suffix(".part")
            try:
                storage.fs.get_file(storage.path(tar_file(shard)), str(scratch))
                with _locked(self.folder / ".lock"):
                    self._make_room(scratch.stat().st_size)
                    scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Drop the shards that were used longest ago until another of this size fits."""
        files = []
        for path in self.folder.glob("*/*.tar"):
            with suppress(FileNotFoundError):  # another process makes room too
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        used = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if used + size <= self.bound:
                return
            path.unlink(missing_ok=True)
            used -= length


class LookAhead:
    """Fetches the shards of batches to come in the background; whoever reads them meets, and tells, what went wrong."""

    def __init__(self, cache: ShardCache | None):
        self.cache = cache
        self._pool = ThreadPoolExecutor(LOOK_AHEAD, "look-ahead")
        self._running: dict[int, Future[None]] = {}

    def want(self, shards: Sequence[int]) -> None:
        if self.cache is None:
            return
        self._running = {shard: future for shard, future in self._running.items() if not future.done()}
        for shard in shards:
            if shard not in self._running:
                self._running[shard] = self._pool.submit(self.cache.fetch, shard)

    def __enter__(self) -> "LookAhead":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
