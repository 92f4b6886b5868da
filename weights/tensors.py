"""Writes tensors as safetensors, with the file mode of the umask."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: str | os.PathLike[str]) -> None:
    """Write tensors of any device, including those that are mapped from a file or share their storage."""
    separate: dict[str, Tensor] = {}
    addresses = set()
    for name, value in tensors.items():
        # safetensors rejects tensors that share storage, as those of a pickle or a model may.
        tensor = value.detach().cpu()
        address = tensor.untyped_storage().data_ptr()
        shared = address in addresses
        separate[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        addresses.add(address)
    # safetensors creates files with mode 0600; this keeps the default mode of the umask.
    Path(file).touch()
    mode = Path(file).stat().st_mode
    save_file(separate, file, {"format": "pt"})
    Path(file).chmod(mode)
