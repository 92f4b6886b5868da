"""Writes tensors as safetensors files with the permissions of other files."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: str | os.PathLike[str]) -> None:
    """Write tensors, also from mapped files and from other devices; tensors that share storage are copied."""
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
