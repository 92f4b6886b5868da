"""Small things that the tests of filters share: tiny weights and a dataset of eggs."""

from pathlib import Path

import pytest
from egg import egg_job
from tiny import TINY_CLIP, write_clip, write_recogniser

from datagen.generate import generate
from jobs.pool import PoolConfig
from manifests.dataset import Dataset


@pytest.fixture(scope="session")
def eggs(tmp_path_factory) -> Dataset:
    """7 eggs of 6 views in 4 shards."""
    return generate(egg_job(str(tmp_path_factory.mktemp("eggs") / "heads"), PoolConfig(inline=True)))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A folder in open_clip's own format with random weights."""
    return write_clip(tmp_path_factory.mktemp("clip"), TINY_CLIP)


@pytest.fixture(scope="session")
def tiny_arcface(tmp_path_factory) -> Path:
    return write_recogniser(tmp_path_factory.mktemp("arcface") / "tiny.onnx")
