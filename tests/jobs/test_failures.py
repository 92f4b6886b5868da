"""Every kind of error becomes one line and the exit code that the documents give it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import small_plan, write_shard

from jobs.failures import exit_code, line, report
from jobs.units import WorkersKeepDying
from manifests.errors import DamagedData, MissingFile, StorageError, UserError
from manifests.plan import write_plan
from manifests.storage import Storage

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("--steps is 0; it must be 1 or more"), 2, "spinset views: --steps is 0; it must be 1 or more"),
        (MissingFile("there is no file x"), 2, "spinset views: there is no file x"),
        (DamagedData("x is damaged; run spinset repair y"), 3, "spinset views: x is damaged; run spinset repair y"),
        (WorkersKeepDying("3 workers died"), 3, "spinset views: 3 workers died"),
        (StorageError("s3://x cannot be used: no route"), 1, "spinset views: s3://x cannot be used: no route"),
        (FileExistsError(17, "File exists", "/a b"), 2, "spinset views: /a b: File exists"),
        (PermissionError(13, "Permission denied", "/root/x"), 2, "spinset views: /root/x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt/x"), 2, "spinset views: /mnt/x: Read-only file system"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/xx"), 2, "spinset views: /xx: File name too long"),
        (
            PermissionError(13, "Permission denied", "/data/scores/.image.parquet.tmp-0123456789ab-7-89abcdef"),
            2,
            "spinset views: /data/scores: Permission denied",
        ),
        (KeyboardInterrupt(), 130, "spinset views: interrupted; the same command resumes"),
        (ModuleNotFoundError("no", name="embreex.rtcore"), 2, "the package embreex is not installed; run pip install"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to"),
            1,
            "spinset views: out of memory (CUDA out of memory.",
        ),
        (MemoryError(), 1, "spinset views: out of memory"),
    ],
)
def test_kinds(error, code, says):
    assert exit_code(error) == code
    assert says in line("views", error)
    assert "\n" not in line("views", error)


def test_a_full_disk_names_the_file_and_what_is_free(tmp_path):
    said = line("generate", OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x" / "y")))
    assert said.startswith(f"spinset generate: no space is left on the disk of {tmp_path} (")
    assert said.endswith(" MB free); free some space and run the same command again to continue")


def test_a_fault_of_spinset_keeps_its_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken():
        raise ValueError("shapes (2,) and (3,) do not broadcast\nsecond line")

    with pytest.raises(ValueError, match="broadcast") as caught:
        broken()
    assert report("views", caught.value) == 1
    (file,) = tmp_path.glob("spinset-*.log")
    assert capsys.readouterr().err == (
        "spinset views: internal error: ValueError: shapes (2,) and (3,) do not broadcast; "
        f"the traceback is in {file}, please report it with that file\n"
    )
    assert "in broken" in file.read_text()


def test_a_traceback_is_printed_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("SPINSET_TRACEBACK", "1")
    assert report("views", UserError("no")) == 2
    assert "UserError: no" in capsys.readouterr().err


def spinset(*command: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "spinset.py"), *command], stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("command", [("--help",), ("verify", "{data}")])
def test_a_closed_pipe_is_quiet(tmp_path, command):
    """`spinset verify OUT | true`: the reader has gone before anything is printed."""
    storage, plan = Storage(tmp_path / "heads"), small_plan()
    write_plan(storage, plan)
    write_shard(storage, plan, 0)
    reading, writing = os.pipe()
    os.close(reading)
    process = spinset(*(word.format(data=storage.url) for word in command), stdout=writing)
    os.close(writing)
    err = process.communicate()[1]
    assert err == b""
    assert process.returncode == 141
