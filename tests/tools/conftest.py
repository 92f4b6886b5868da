"""A few procedural heads of seeds that no shipped model learned from."""

import pytest

from datagen.config import GenerateConfig, MeshConfig, ProceduralConfig, SourceConfig
from datagen.generate import generate
from jobs.pool import PoolConfig
from manifests.dataset import Dataset


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Dataset:
    """6 heads of 12 views, among them Janus heads and ones that drift."""
    source = SourceConfig(procedural=ProceduralConfig(0.35, ("janus", "identity_drift")))
    out = str(tmp_path_factory.mktemp("people"))
    small = {"rig": "scatter-12", "resolution": 96, "mesh": MeshConfig(64)}
    return generate(GenerateConfig(out, source, 6, seed=40_000_007, pool=PoolConfig(inline=True), **small))
