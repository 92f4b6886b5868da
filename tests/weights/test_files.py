"""Tensors come back as they were, and whoever may read the other files of a folder may read them."""

import stat

import torch
from safetensors.torch import load_file

from weights.files import save_tensors


def test_they_come_back_even_from_one_memory(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "again": whole, "turned": whole.T, "weight": torch.nn.Parameter(torch.ones(2))}
    save_tensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    (tmp_path / "any.txt").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x.safetensors", "any.txt")}
    assert len(modes) == 1
    (tmp_path / "x.safetensors").chmod(0o640)
    save_tensors(tensors, tmp_path / "x.safetensors")
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640
