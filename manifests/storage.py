"""The storage of a dataset: a local folder or any fsspec address, with atomic writes."""

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from manifests.errors import MissingFile, StorageError, UserError, first_line
from manifests.remote import Remote, request_bounds
from manifests.writers import is_dead, writer_name

THREADS = 16
"""Threads that read many files."""
TEMPORARY = ".tmp-"
SCRATCH = re.compile(re.escape(TEMPORARY) + r"(?P<writer>[0-9a-f]{12}-\d+-[0-9a-f]{8})$")
"""The end of a scratch file's name; files of other programs with similar names are left alone."""
ABANDONED = 24 * 3600.0
"""Seconds after its last write at which a scratch file of another machine or container counts as abandoned."""
UNSIGNED = 900.0
"""The same for a writer whose command has lost its lease."""
WHOLE_AT_ONCE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"}
"""Protocols whose keys appear only when an upload has finished."""


class Storage:
    """The files below one root, e.g. `out/heads` or `s3://bucket/heads`; names are relative and use '/'.

    Local files appear by rename after fsync. Object stores show a key only once its upload has finished.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.url = os.fsdecode(root)
        self.url.encode()  # what the locale cannot decode fails here, before anything is written
        self.fs: Any
        if "://" not in self.url:
            # Not through url_to_fs, which takes "::" in a path for a chain of file systems.
            self.fs, path = LocalFileSystem(), os.path.abspath(os.path.expanduser(self.url))
        else:
            try:
                # Without a cache of listings, which would hide the shards that other workers commit.
                self.fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **request_bounds(self.url))
            except ImportError as error:
                raise UserError(f"{self.url} needs another package: {error}") from error
            except ValueError as error:  # a protocol that fsspec does not know
                raise UserError(f"{self.url} cannot be used: {error}") from error
            except Exception as error:  # some file systems connect at once
                raise StorageError(f"{self.url} cannot be used: {first_line(error)}") from error
        self.root = path.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if not self.is_local:
            self.fs = Remote(self.fs, self.url)

    @property
    def address(self) -> str:
        """The address that holds in the working folder of any worker: the absolute path of a local folder, or the URL."""
        return self.root if self.is_local else self.url

    def path(self, name: str) -> str:
        parts = name.split("/")
        if {"", ".", ".."} & set(parts):
            raise UserError(f"{name!r} is not the name of a file inside a dataset")
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def size(self, name: str) -> int:
        return self.fs.size(self.path(name))

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files and folders directly in a folder (the root unless given); none if there is no such one."""
        path = self.path(folder) if folder else self.root
        self.fs.invalidate_cache()
        if not self.fs.isdir(path):
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(path, detail=False))

    def open(self, name: str):
        return self.fs.open(self.path(name), "rb")

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """The contents of many small files, read many at a time; None for one that is missing."""
        if self.is_local:
            with ThreadPoolExecutor(THREADS) as pool:
                yield from pool.map(self._read_if_there, names)
            return
        found = self.fs.cat_ranges([self.path(name) for name in names], None, None, on_error="return")
        for name, data in zip(names, found, strict=True):
            # Those that failed are read again alone, which repeats what may pass.
            yield data if isinstance(data, bytes) else self._read_if_there(name)

    def _read_if_there(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Commit a small file."""
        with self.writing(name) as scratch, naming(scratch):
            scratch.write_bytes(data)

    def write_json(self, name: str, document: Any, sort_keys: bool = False) -> None:
        """Commit a document as JSON for people to read."""
        self.write(name, (json.dumps(document, indent=2, sort_keys=sort_keys) + "\n").encode())

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one of this name, and return whether it was written.

        Of several that try at once, one does, except on object stores that lack conditional writes. The data must tell who
        writes it.
        """
        path = self.path(name)
        try:
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    file.write(data)
            else:
                if not WHOLE_AT_ONCE & set(self.fs.protocols):
                    self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            # An answer that was lost may have been that this call has written it. By now it may be removed.
            return not self.is_local and self._read_if_there(name) == data
        except StorageError as error:
            # Some object stores refuse a conditional write with an error of their own.
            if self.exists(name):
                return self._read_if_there(name) == data
            if getattr(error.__cause__, "errno", None) != errno.ENOSYS:
                raise
            self.fs.pipe_file(path, data)
        return True

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a scratch path and commit what the block writes there; an error leaves nothing behind."""
        scratch = self.scratch(name)
        try:
            yield scratch
            self.commit(scratch, name)
        finally:
            scratch.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """A new local path to write to before `commit`; beside the final file where that is local, so a rename suffices."""
        suffix = f"{TEMPORARY}{writer_name()}"
        if not self.is_local:
            return Path(_uploads(os.getpid()).name) / f".{name.replace('/', '-')}{suffix}"
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        return final.with_name(f".{final.name}{suffix}")

    def commit(self, scratch: Path, name: str) -> None:
        """Make a finished scratch file durable under its name, replacing an existing file."""
        if not self.is_local:
            final = self.path(name)
            if WHOLE_AT_ONCE & set(self.fs.protocols):
                try:
                    self.fs.put_file(str(scratch), final)
                except FileNotFoundError as error:
                    raise MissingFile(f"{self.url} cannot be written: {error}") from error
            else:  # a file server shows a file before it is complete
                self.fs.makedirs(final.rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(scratch), f"{final}{TEMPORARY}upload")
                self.fs.mv(f"{final}{TEMPORARY}upload", final)
            scratch.unlink()
            return
        with scratch.open("rb") as file, naming(scratch):
            os.fsync(file.fileno())
        final = self.path(name)
        os.makedirs(os.path.dirname(final), exist_ok=True)
        os.replace(scratch, final)
        folder = os.open(os.path.dirname(final), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def take(self, other: "Storage", name: str) -> None:
        """Copy a file of another storage of the same kind here, replacing an existing file."""
        if self.is_local:
            with self.writing(name) as scratch, naming(scratch):
                shutil.copyfile(other.path(name), scratch)
        else:
            self.fs.copy(other.path(name), self.path(name))

    def remove_all(self) -> None:
        """Remove the root and everything below it."""
        self.fs.rm(self.root, recursive=True)

    def remove(self, name: str) -> None:
        self.fs.rm_file(self.path(name))

    def clear_leftovers(self, of: str = "") -> int:
        """Remove the scratch files of writers that are no longer alive, and return how many there were.

        On the same machine and container the process number tells whether the writer is alive; a file of any other writer is
        removed when nothing was written to it for a day. With `of`, the name of a file without its suffix, only scratch files
        of that name are removed, and after UNSIGNED seconds: the caller knows that their writer gives no sign of life.
        Uploads to object stores use a temporary folder of their process.
        """
        if not self.is_local:
            return 0
        folder, _, stem = of.rpartition("/")
        found = Path(self.root, folder).rglob(f".{stem}*{TEMPORARY}*")
        dead = [path for path in found if _is_abandoned(path, UNSIGNED if of else ABANDONED)]
        for path in dead:
            path.unlink(missing_ok=True)
        return len(dead)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Add the file name to errors of writing, which the system leaves out when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise


@cache
def _uploads(pid: int) -> "tempfile.TemporaryDirectory[str]":
    """The folder of this process for files to be uploaded to an object store; the variable TMPDIR sets its parent."""
    return tempfile.TemporaryDirectory(prefix="spinset-upload-")


def _is_abandoned(scratch: Path, seconds: float) -> bool:
    """Whether a file is a scratch file whose writer has ended, or runs elsewhere and has written nothing for so long."""
    found = SCRATCH.search(scratch.name)
    if found is None:
        return False
    dead = is_dead(found["writer"])
    if dead is not None:
        return dead
    try:
        return time.time() - scratch.stat().st_mtime > seconds
    except FileNotFoundError:  # its writer has just committed it
        return False
