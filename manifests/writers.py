"""Names of the processes that write to a dataset, by which others learn whether they are alive."""

import hashlib
import os
import secrets
import socket
from functools import cache
from pathlib import Path


@cache
def _processes() -> str:
    """A name for the machine and container whose process numbers this process shares.

    A host name does not suffice: containers may share one and each count processes from 1.
    """
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    if boot.exists():  # Linux; elsewhere there are no containers
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def writer_name() -> str:
    """A new name for something that this process writes: of its machine and container, its number, and random."""
    return f"{_processes()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_dead(writer: str) -> bool | None:
    """Whether the process of a `writer_name` has ended; None if it ran on another machine or in another container."""
    machine, _, rest = writer.partition("-")
    if machine != _processes():
        return None
    try:
        os.kill(int(rest.partition("-")[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # alive, and another user's
        return False
    return False
