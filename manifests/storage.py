"""Where a dataset lies: a local folder or any fsspec address, with writes that are whole or not there."""

import os
import secrets
import socket
import tempfile
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from manifests.errors import UserError

TEMPORARY = ".tmp-"
UPLOADS = Path(tempfile.gettempdir()) / "spinset-uploads"
"""Where files wait that are on their way to an object store."""


class Storage:
    """The files below one root, e.g. `out/heads` or `s3://bucket/heads`; names are relative and use '/'.

    Local files appear by rename after fsync. Object stores show a key only once its upload has finished.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.url = str(root)
        try:
            self.fs, path = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise UserError(f"{self.url} needs another package: {error}") from error
        self.root = path.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        parts = name.split("/")
        if {"", ".", ".."} & set(parts):
            raise UserError(f"{name!r} is not a name inside a dataset")
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def size(self, name: str) -> int:
        return self.fs.size(self.path(name))

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files directly in a folder; none if there is no such folder."""
        if not self.fs.isdir(self.path(folder)):
            return []
        self.fs.invalidate_cache()
        return sorted(entry.rsplit("/", 1)[-1] for entry in self.fs.ls(self.path(folder), detail=False))

    def open(self, name: str):
        return self.fs.open(self.path(name), "rb")

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Commit a small file."""
        scratch = self.scratch(name)
        try:
            scratch.write_bytes(data)
            self.commit(scratch, name)
        finally:
            scratch.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """A fresh local path to write `name` to before `commit`; beside it where that is local, so a rename suffices."""
        suffix = f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        if not self.is_local:
            UPLOADS.mkdir(exist_ok=True)
            return UPLOADS / f".{name.replace('/', '-')}{suffix}"
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        return final.with_name(f".{final.name}{suffix}")

    def commit(self, scratch: Path, name: str) -> None:
        """Make a finished scratch file durable under its name, replacing what was there."""
        if not self.is_local:
            self.fs.put_file(str(scratch), self.path(name))
            scratch.unlink()
            return
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        final = self.path(name)
        os.replace(scratch, final)
        folder = os.open(os.path.dirname(final), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def take(self, other: "Storage", name: str) -> None:
        """Move a file here from another place of the same file system, over what was there."""
        if self.is_local:
            os.replace(other.path(name), self.path(name))
        else:
            self.fs.mv(other.path(name), self.path(name))

    def remove_all(self) -> None:
        """Remove the root and everything below it."""
        self.fs.rm(self.root, recursive=True)

    def remove(self, name: str) -> None:
        self.fs.rm_file(self.path(name))

    def clear_leftovers(self) -> int:
        """Remove the scratch files of this host's writers that are no longer alive; how many there were."""
        folder = Path(self.root) if self.is_local else UPLOADS
        dead = [path for path in folder.rglob(f".*{TEMPORARY}*") if _writer_is_dead(path.name)]
        for path in dead:
            path.unlink(missing_ok=True)
        return len(dead)


def _writer_is_dead(scratch: str) -> bool:
    host, pid, _ = scratch.split(TEMPORARY)[1].rsplit("-", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, and somebody else's
        return False
    return False
