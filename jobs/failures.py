"""The line that a failing command prints, and its exit code."""

import errno
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from jobs.units import NoCapacity, OutOfMemory, WorkersKeepDying
from manifests.errors import DamagedData, StorageError, UserError, first_line
from manifests.storage import SCRATCH

DONE, FAILED, BAD_INPUT, FAULTS, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141
TRACEBACK = "SPINSET_TRACEBACK"
"""The environment variable that prints tracebacks instead of writing them to a file."""
PLACES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors of the operating system for a path that cannot be used."""
UNUSABLE = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
"""Further such errors, for which Python has no class."""
CLIENTS = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")
"""Packages whose errors come from a remote storage."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def report(command: str, error: BaseException) -> int:
    """Print an exception of a command as one line on stderr, and return the exit code it stands for."""
    if isinstance(error, BrokenPipeError):
        # The reader of the output has closed it, so the flush at exit must go elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    if TRACEBACK in os.environ and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
        return exit_code(error)
    print(
        f"\n{line(command, error)}" if isinstance(error, KeyboardInterrupt) else line(command, error), file=sys.stderr
    )
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """The exit code: 2 for a user error, 3 for damaged data and for work that was given up, 1 for any other error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, DamagedData | WorkersKeepDying | NoCapacity):
        return FAULTS
    is_input = isinstance(error, UserError | UnicodeEncodeError | ImportError) or _is_unusable(error)
    return BAD_INPUT if is_input else FAILED


def line(command: str, error: BaseException) -> str:
    """The line that is printed for an exception."""
    name = f"spinset {command}"
    if isinstance(error, KeyboardInterrupt):
        return f"{name}: interrupted; the same command resumes"
    if isinstance(error, DamagedData | WorkersKeepDying | NoCapacity | UserError | StorageError):
        return f"{name}: {error}"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"{name}: {_no_space(error)}; free some space and run the same command again to continue"
    if isinstance(error, OSError) and _is_unusable(error):
        if error.filename is None:
            return f"{name}: {error}"
        place = Path(os.fsdecode(error.filename))
        # A scratch file means nothing to the user, so its folder is named.
        return f"{name}: {place.parent if SCRATCH.search(place.name) else place}: {error.strerror}"
    if isinstance(error, UnicodeEncodeError):
        return f"{name}: a path holds characters that this locale cannot encode; set LC_ALL=C.UTF-8"
    if isinstance(error, ImportError) and error.name is not None:
        package = error.name.partition(".")[0]
        return f"{name}: the package {package} is not installed; run pip install 'spinset[all]'"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError | OutOfMemory):
        first = (str(error).splitlines() or [""])[0]
        return (
            f"{name}: out of memory ({first}); lower --micro or --batch, --resolution, or the number of --workers, "
            "or give --checkpoint-activations where a model is trained"
        )
    if type(error).__module__.partition(".")[0] in CLIENTS:
        return f"{name}: the storage cannot be used: {first_line(error)}"
    where = _written(error)
    return f"{name}: internal error: {first_line(error)}; the traceback is in {where}, please report it with that file"


def _is_unusable(error: BaseException) -> bool:
    """Whether the operating system refused a path."""
    return isinstance(error, PLACES) or (isinstance(error, OSError) and error.errno in UNUSABLE)


def _no_space(error: OSError) -> str:
    """The folder whose disk is full, and the bytes that are free on it."""
    where = Path(os.fsdecode(error.filename)) if error.filename else Path()
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    return f"no space is left on the disk of {where.absolute()} ({free / 1e6:.1f} MB free)"


def _written(error: BaseException) -> str:
    """Write the traceback to a file, and return its name."""
    descriptor, file = tempfile.mkstemp(prefix="spinset-", suffix=".log", text=True)
    with os.fdopen(descriptor, "w", errors="backslashreplace") as out:
        traceback.print_exception(error, file=out)
    return file
