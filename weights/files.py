"""Weight files: found and hashed, never downloaded."""

import hashlib
from pathlib import Path

from manifests.errors import MissingFile


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def absolute(path: str) -> str:
    """The absolute path of a file or folder; a text that is no path, such as the name of a model, is returned as it is."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def existing(path: str | Path, what: str) -> Path:
    """The path of a file; raises MissingFile if there is none, with `what` as the name of what was looked for."""
    if not Path(path).is_file():
        raise MissingFile(f"{what}: there is no file {path}; weights are never downloaded, give the path of yours")
    return Path(path)
