"""Weight files: found and hashed, never fetched."""

import hashlib
from pathlib import Path

from manifests.errors import MissingFile


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def absolute(path: str) -> str:
    """The path as it holds in any folder; what is no path here, such as the name of a model, stays."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def existing(path: str | Path, what: str) -> Path:
    """The path, if a file is there; raises FileNotFoundError saying what was looked for."""
    if not Path(path).is_file():
        raise MissingFile(f"{what}: there is no file {path}; weights are never downloaded, give the path of yours")
    return Path(path)
