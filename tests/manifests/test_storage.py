"""Files are whole or not there, scratch files of living writers stay, and errors of remote storages are one line."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from manifests.errors import StorageError, UserError
from manifests.storage import ABANDONED, Storage


def beside(storage: Storage, ending: str) -> Path:
    """A file named as a scratch file of shards/a.tar with another ending."""
    file = Path(storage.root) / "shards" / f".a.tar.tmp-{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"half")
    return file


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_scratch_files_of_dead_writers_are_removed(tmp_path):
    storage = Storage(tmp_path / "heads")
    mine = storage.scratch("shards/a.tar")
    mine.write_bytes(b"half")
    host = mine.name.split(".tmp-")[1].split("-")[0]
    dead = beside(storage, f"{host}-{dead_process()}-00000000")
    assert storage.clear_leftovers() == 1
    assert mine.exists() and not dead.exists()


def test_scratch_files_of_another_container_stay_for_a_day(tmp_path):
    """Its process numbers mean nothing here, also where both have the same host name."""
    storage = Storage(tmp_path / "heads")
    other = beside(storage, f"{'0' * 12}-{dead_process()}-00000000")
    assert storage.clear_leftovers() == 0 and other.exists()
    old = time.time() - ABANDONED - 60
    os.utime(other, (old, old))
    assert storage.clear_leftovers() == 1 and not other.exists()


@pytest.mark.parametrize("ending", ["y", "vm-2-8eb29089", "aGVsbG8", "000000000000-12-0000000", ""])
def test_similar_files_of_other_programs_stay(tmp_path, ending):
    storage = Storage(tmp_path / "heads")
    foreign = beside(storage, ending)
    os.utime(foreign, (0, 0))
    assert storage.clear_leftovers() == 0 and foreign.exists()


@pytest.mark.parametrize("name", ["q::r", "a::b/c", "memory::x"])
def test_local_paths_with_colons_are_no_chains(tmp_path, name):
    storage = Storage(tmp_path / name)
    storage.write("a/b", b"x")
    assert storage.is_local and (tmp_path / name / "a" / "b").read_bytes() == b"x"
    assert Storage(str(tmp_path / name)).read("a/b") == b"x"


@pytest.mark.parametrize("name", ["../x", "a//b", "/a", "a/./b", ""])
def test_names_stay_inside(tmp_path, name):
    with pytest.raises(UserError, match="is not the name of a file inside a dataset"):
        Storage(tmp_path).path(name)


def test_uploads_wait_in_a_folder_of_their_own():
    scratch = Storage("memory://uploads/heads").scratch("shards/a.tar")
    assert scratch.parent.stat().st_mode & 0o777 == 0o700
    assert scratch.parent.stat().st_uid == os.getuid()
    assert Storage("memory://elsewhere").scratch("b").parent == scratch.parent


def test_missing_remote_files_are_missing_files():
    with pytest.raises(FileNotFoundError):
        Storage("memory://nothing/heads").read("dataset.json")


class Server(MemoryFileSystem):
    """Files in memory that appear as they grow, as those of file servers do."""

    protocol = "fileserver"
    store: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    uploads: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("fileserver://", "memory://"))

    def put_file(self, lpath, rpath, *args, **options):
        self.uploads.append(rpath)
        super().put_file(lpath, rpath, *args, **options)


def test_uploads_to_file_servers_appear_whole():
    fsspec.register_implementation("fileserver", Server, clobber=True)
    storage = Storage("fileserver://box/heads")
    for data in (b"first", b"second"):
        storage.write("shards/a.tar", data)
        assert storage.read("shards/a.tar") == data
    assert storage.names("shards") == ["a.tar"]
    assert Server.uploads == [f"{storage.path('shards/a.tar')}.tmp-upload"] * 2


def closed_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_is_gone_is_a_storage_error():
    url = f"ftp://127.0.0.1:{closed_port()}/heads"
    with pytest.raises(
        StorageError, match=r"^ftp://127\.0\.0\.1:\d+/heads cannot be used: ConnectionRefusedError: .*$"
    ):
        Storage(url).read("dataset.json")


def test_an_s3_endpoint_that_is_gone_is_a_storage_error(monkeypatch):
    pytest.importorskip("s3fs")
    settings = {"ENDPOINT_URL": f"http://127.0.0.1:{closed_port()}", "MAX_ATTEMPTS": "1", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StorageError, match=r"^s3://bucket/heads cannot be used: \w+: .*$"):
        Storage("s3://bucket/heads").read("dataset.json")


def test_unknown_protocols_are_a_mistake_of_the_user():
    with pytest.raises(UserError, match=r"^nowhere://x cannot be used: .*nowhere"):
        Storage("nowhere://x")
