"""Weights that people bring: files found and hashed, never fetched."""

import hashlib
from pathlib import Path

from manifests.errors import MissingFile, UserError

EMBEDDED = Path(__file__).parent / "embedded"
"""Small models of this repository, trained on heads of the procedural source; their numbers mean nothing on others."""
RECOGNISER = EMBEDDED / "arcface.onnx"
CLIP = EMBEDDED / "clip"
KNOWN_SOURCE = "procedural"


def is_embedded(model: str) -> bool:
    """Whether an option that names a model means an embedded one: by its path, or because it is not given."""
    return not model or Path(model.removeprefix("local-dir:")).resolve().is_relative_to(EMBEDDED.resolve())


def beyond_embedded(option: str, model: str, source: str, allow: bool, override: str = "--allow-embedded") -> bool:
    """Whether an embedded model judges heads of a source that it was not trained on, which only `allow` permits.

    Raises:
        UserError: it would, and is not allowed to; names the option that takes another model.
    """
    if source == KNOWN_SOURCE or not is_embedded(model):
        return False
    if not allow:
        raise UserError(
            f"the embedded model was trained on {KNOWN_SOURCE} heads only, and these are {source}: give weights with "
            f"{option}, or {override} to use it all the same"
        )
    return True


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
