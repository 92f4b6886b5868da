"""A bounded copy of remote shards on a local disk, shared by all processes of a machine.

Shards appear by rename and are dropped least recently used first. A process that fetches one holds a file lock, which the
kernel releases when the process dies; there is no daemon and nothing to clean up. The bound applies to whole shards, not to
those that are being fetched.
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
"""Number of shards that are prefetched at the same time."""


def tar_file(shard: int) -> str:
    return f"{schema.SHARDS}/{schema.shard_name(shard)}.tar"


class ShardCache:
    """The shards of one dataset, as one index knows them, in a folder that other datasets may share."""

    def __init__(self, url: str, fingerprint: str, folder: str, bound: int):
        self.url, self.bound = url, bound
        # A separate folder, because every shard in it may be dropped.
        self.folder = Path(folder) / "spinset-cache"
        self.own = self.folder / hashlib.sha256(f"{url} {fingerprint}".encode()).hexdigest()[:16]

    def open(self, shard: int) -> BinaryIO:
        """Open the local copy of a shard, which is fetched if it is not there; it stays readable when the cache drops it."""
        path = self.own / f"{schema.shard_name(shard)}.tar"
        while True:
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                self.fetch(shard)
                continue
            with suppress(FileNotFoundError):  # dropped in the meantime, but open
                now = time.time_ns()  # the kernel's clock is too coarse to order two accesses
                os.utime(path, ns=(now, now))
            return file

    def fetch(self, shard: int) -> None:
        """Copy a shard into the cache; raises FileNotFoundError if the dataset no longer has it."""
        path = self.own / f"{schema.shard_name(shard)}.tar"
        self.own.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if path.exists():
                return
            storage, scratch = Storage(self.url), path.with_suffix(".part")
            try:
                storage.fs.get_file(storage.path(tar_file(shard)), str(scratch))
                with _locked(self.folder / ".lock"):
                    self._evict(scratch.stat().st_size)
                    scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)

    def _evict(self, size: int) -> None:
        """Drop the least recently used shards until another of this size fits."""
        files = []
        for path in self.folder.glob("*/*.tar"):
            with suppress(FileNotFoundError):  # another process may evict too
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        used = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if used + size <= self.bound:
                return
            path.unlink(missing_ok=True)
            used -= length


class LookAhead:
    """Prefetches shards in the background; an error of a fetch is raised when the shard is read."""

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
