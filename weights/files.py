"""Weight files: found and hashed, never downloaded; and tensors written with the permissions of other files."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import MissingFile

if TYPE_CHECKING:
    from torch import Tensor


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


def save_tensors(tensors: Mapping[str, "Tensor"], file: str | os.PathLike[str]) -> None:
    """Write tensors, also from mapped files and from other devices; tensors that share storage are copied."""
    # Importing these takes seconds, which commands that only look for files need not spend.
    import torch
    from safetensors.torch import save_file

    separate: dict[str, Tensor] = {}
    storages = set()
    for name, value in tensors.items():
        # safetensors rejects tensors that share storage, as those of a pickle or of a model may.
        tensor = value.detach().cpu()
        storage = tensor.untyped_storage().data_ptr()
        is_shared = storage in storages
        separate[name] = tensor.clone(memory_format=torch.contiguous_format) if is_shared else tensor.contiguous()
        storages.add(storage)
    # safetensors creates files with mode 0600; the mode of a new file under the umask is restored.
    Path(file).touch()
    mode = Path(file).stat().st_mode
    save_file(separate, file, {"format": "pt"})
    Path(file).chmod(mode)
