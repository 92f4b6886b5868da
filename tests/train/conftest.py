"""Datasets for tests of what loads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small import small_plan, write_shard

from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage

Make = Callable[..., Dataset]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a dataset of noise pictures seen from a ring that begins at the front."""

    def make(identities: int = 6, per_shard: int = 2, views: int = 3, name: str = "heads", **plan) -> Dataset:
        storage = Storage(tmp_path / name)
        azimuth = [120.0 * view for view in range(views)]
        rig = {"id": f"orbit-{views}", "azimuth": azimuth, "azimuth_jitter": 0.0, "elevation_jitter": 0.0}
        made = small_plan(identities, per_shard, **{"rig": rig, **plan})
        write_plan(storage, made)
        for shard in range(made.shards):
            write_shard(storage, made, shard, views)
        return Dataset(storage)

    return make
