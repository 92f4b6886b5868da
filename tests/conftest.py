"""Shared by all tests: where the large golden files lie, and a small dataset to read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import small_plan, write_shard

from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage
from train.networks import model

# SPINSET_TEST_BF16=on or off runs the tests of this process as on a machine with or without bf16 instructions.
if forced := os.environ.get("SPINSET_TEST_BF16"):
    model.native_bf16 = lambda device: {"on": True, "off": False}[forced]

# Ray starts its workers at a low priority, so that a test would wait for everything else on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")

# Many small tensors: with two threads on a busy machine they take ten times as long as with one.
torch.set_num_threads(1)

LONG = [
    "launch_ray",
    "generate",
    "trainer",
    "gpu",
    "cli",
    "faults",
    "evaluate",
    "toy_family",
    "stages",
    "retry",
    "pool",
    "process_pool",
    "imports",
]
"""Files that take longest, which begin first: one that began last would be waited for by all other processes."""

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests so that the long files come first."""
    place = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the large golden files, which a plain clone does not have."""
    if not GOLDEN.is_dir():
        pytest.skip("the large golden files are not beside this clone")
    return GOLDEN


@pytest.fixture
def small_dataset(tmp_path) -> Dataset:
    """5 identities of 3 views in 3 shards of noise pictures."""
    storage, plan = Storage(tmp_path / "heads"), small_plan()
    write_plan(storage, plan)
    for shard in range(plan.shards):
        write_shard(storage, plan, shard)
    return Dataset(storage)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Dataset]:
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
