"""The golden generators and cases, reduced and whole."""

from pathlib import Path

import pytest
import torch
from golden_panohead import FOLDERS, REDUCED, generator, read
from panohead_files import generator as pickled
from panohead_files import write
from safetensors.torch import load_file

from datagen.sources.panohead.generator import Generator


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors; and two test processes on two cores should not wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=FOLDERS, ids=lambda folder: "reduced" if folder == REDUCED else "whole")
def folder(request) -> Path:
    return request.param


@pytest.fixture(scope="session")
def tiny(folder) -> Generator:
    return generator(folder)


@pytest.fixture(scope="session")
def cases(folder):
    return load_file(folder / "cases.safetensors")


@pytest.fixture(scope="session")
def described(folder):
    return read(folder, "cases")


@pytest.fixture(scope="session")
def tiny_pickle(tmp_path_factory) -> Path:
    """The golden generator in the official pickle format, as this project's tests write it."""
    state, kwargs = generator(REDUCED).state_dict(), read(REDUCED, "tiny")["init_kwargs"]
    return write(tmp_path_factory.mktemp("tiny") / "tiny.pkl", G_ema=pickled(state, kwargs))
