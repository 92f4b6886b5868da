"""Writes tensors as safetensors that whoever may read the folder may read."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: str | os.PathLike[str]) -> None:
    """Write tensors from wherever they are, mapped files and other devices included."""
    apart: dict[str, Tensor] = {}
    places = set()
    for name, value in tensors.items():
        # The format knows no two tensors in one memory, which a pickle or a model may hold.
        here = value.detach().cpu()
        place = here.untyped_storage().data_ptr()
        apart[name] = here.clone(memory_format=torch.contiguous_format) if place in places else here.contiguous()
        places.add(place)
    # safetensors leaves its files to their owner alone, on a shared disk too; this one is open to whom any other would be.
    Path(file).touch()
    mode = Path(file).stat().st_mode
    save_file(apart, file, {"format": "pt"})
    Path(file).chmod(mode)
