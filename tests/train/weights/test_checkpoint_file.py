"""Checkpoints are read whole or refused in one line, and never executed."""

import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from train.weights.checkpoint_file import read_checkpoint


class Runs:
    """What a pickle of it does when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.rand(3, 4), "a.bias": torch.rand(2).half(), "count": torch.arange(2)}


def same(read: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> bool:
    return read.keys() == weights.keys() and all(
        torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in weights.items()
    )


def refused(path: Path, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_safetensors_and_torch_files_are_read_alike(weights, tmp_path):
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.bin")
    torch.save({"state_dict": {k: nn.Parameter(v, False) for k, v in weights.items()}, "epoch": 3}, tmp_path / "a.ckpt")
    for name in ("a.safetensors", "a.bin", "a.ckpt"):
        assert same(read_checkpoint(tmp_path / name), weights)
    # What a file is called does not matter, nor where its tensors lay in memory.
    (tmp_path / "a.safetensors").rename(tmp_path / "b.pth")
    assert same(read_checkpoint(str(tmp_path / "b.pth")), weights)
    torch.save({"t": weights["a.weight"].T}, tmp_path / "t.pt")
    assert same(read_checkpoint(tmp_path / "t.pt"), {"t": weights["a.weight"].T})


def test_what_a_training_framework_left_beside_the_weights_is_passed_over(weights, tmp_path, monkeypatch):
    # As in v1-5-pruned.ckpt: a dictionary by a class of Lightning, and numbers of numpy.
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as context:
        for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            context.setitem(sys.modules, package, types.ModuleType(package))
        context.setitem(sys.modules, name, module)
        left = module.ModelCheckpoint()
        left.dirpath = "logs"
        callbacks = {module.ModelCheckpoint: {"best": np.float64(0.5), "all": np.arange(3)}, "object": left}
        torch.save({"state_dict": weights, "callbacks": callbacks}, tmp_path / "a.ckpt")
    before = set(torch.serialization.get_safe_globals())
    assert same(read_checkpoint(tmp_path / "a.ckpt"), weights)
    assert "pytorch_lightning" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == before


def test_code_in_a_pickle_is_refused_and_does_not_run(weights, tmp_path):
    made = tmp_path / "made"
    torch.save({"state_dict": weights, "more": Runs(made)}, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", r"asks for posix\.mkdir, which weights do not need; nothing of it was executed")
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"asks for torch\.nn\.modules\.linear\.Linear")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Runs(made)))
    refused(tmp_path / "a.pkl", "is a plain pickle")
    assert not made.exists()


def test_the_format_before_torch_1_6_is_refused(weights, tmp_path):
    torch.save(weights, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    refused(
        tmp_path / "a.pth",
        r"is a plain pickle, as torch wrote before 1\.6, and is not opened; give it as safetensors",
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"there is no file {tmp_path}/spmr\.ckpt; give the path"):
        read_checkpoint(tmp_path / "spmr.ckpt")


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.95])
def test_files_that_were_cut_off_are_refused(weights, tmp_path, kept):
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.ckpt")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.ckpt"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole))])
        refused(path, "cut off|cut-off|did it arrive whole")


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, r"begins with b'version https://', as no safetensors file or torch checkpoint does")
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("picture.png", b"")
    refused(path, "or a zip of something else")
    for value, says in (
        ([torch.zeros(1)], "holds a list; a checkpoint holds tensors by name"),
        ({}, "holds a dict; a checkpoint holds tensors by name"),
        ({"epoch": 3}, "holds 'epoch', a int; weights are tensors by name"),
        ({"state_dict": {3: torch.zeros(1)}}, "holds 3, a Tensor"),
    ):
        torch.save(value, path)
        refused(path, says)
