"""The tools run from a clone as the Makefile calls them, and are not packaged."""

import re
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manifests.errors import UserError
from tools import install_heads64
from weights.embedded import HEADS64

CLONE = Path(__file__).parents[2]
CALLED = sorted(set(re.findall(r"-m (tools\.\w+)", (CLONE / "Makefile").read_text())))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # other tests import them
@pytest.mark.parametrize("module", CALLED)
def test_every_tool_of_the_makefile_runs(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_all_tools_are_called_by_the_makefile_and_none_is_packaged():
    programs = {f"tools.{file.stem}" for file in (CLONE / "tools").glob("*.py") if "__main__" in file.read_text()}
    assert programs == set(CALLED)
    packages = tomllib.loads((CLONE / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert "weights*" in packages and "tools*" not in packages


def test_a_model_is_installed_in_half_precision(tmp_path, monkeypatch):
    embedded = tmp_path / "embedded"
    shutil.copytree(HEADS64 / "vae", embedded / "vae")
    monkeypatch.setattr(install_heads64, "HEADS64", embedded)
    install_heads64.install(HEADS64)
    assert (embedded / "model.json").read_text() == (HEADS64 / "model.json").read_text()
    weights = "unet/diffusion_pytorch_model.safetensors"
    installed, trained = load_file(embedded / weights), load_file(HEADS64 / weights)
    assert {weight.dtype for weight in installed.values()} == {torch.float16}
    assert all(torch.equal(installed[name], trained[name].half()) for name in trained)
    config = embedded / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scaling_factor": ', '"scaling_factor": 1'))
    with pytest.raises(UserError, match="was trained with another autoencoder than"):
        install_heads64.install(HEADS64)
