"""The official implementation's small generators, and what it made of them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from datagen.sources.panohead.build import build
from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import Generator


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors; and two test processes on two cores should not wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(golden):
    return golden / "panohead"


@pytest.fixture(scope="session")
def tiny(folder) -> Generator:
    kwargs = json.loads((folder / "tiny.json").read_text())["init_kwargs"]
    config = GeneratorConfig.from_official(kwargs, kwargs["rendering_kwargs"], 16)
    return build(config, load_file(folder / "tiny.safetensors"))


@pytest.fixture(scope="session")
def cases(folder):
    return load_file(folder / "cases.safetensors")


@pytest.fixture(scope="session")
def described(folder):
    return json.loads((folder / "cases.json").read_text())


@pytest.fixture(scope="session")
def spherehead_file(folder):
    return load_file(folder / "spherehead_tiny.safetensors")


@pytest.fixture(scope="session")
def spherehead(folder, spherehead_file) -> Generator:
    kwargs = json.loads((folder / "spherehead_tiny.json").read_text())["init_kwargs"]
    state = {key.removeprefix("sd."): value for key, value in spherehead_file.items() if not key.startswith("case.")}
    return build(GeneratorConfig.from_official(kwargs, kwargs["rendering_kwargs"], 16, "spherehead"), state)
