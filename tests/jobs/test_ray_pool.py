"""Clusters that cannot be used, and workers that cannot start: one line each (machines that come and go: test_faults.py)."""

import sys
from functools import partial
from pathlib import Path

import pytest
from workers import Maker

from jobs import pool
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from jobs.ray_pool import init_ray
from jobs.units import NoCapacity, WorkersKeepDying
from manifests.errors import UserError
from manifests.storage import Storage


@pytest.fixture(autouse=True)
def _workers_travel_by_value(monkeypatch):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def run(folder: Path, make_worker, config: PoolConfig) -> None:
    """Run one unit."""
    pool.run([0], make_worker, config, lambda event: None, Ledger(Storage(folder), "generate", lambda unit: False))


def test_a_machine_that_is_taken_is_waited_for_and_then_said(tmp_path):
    """In a session of Ray that was there before, and is afterwards."""
    import ray

    init_ray("local", num_cpus=1, include_dashboard=False)
    try:
        holder = ray.remote(num_cpus=1)(Holder).remote()
        ray.get(holder.hold.remote())
        with pytest.raises(NoCapacity, match=r"no worker could be placed for 0\.01 minutes"):
            run(tmp_path, partial(Maker, str(tmp_path), 4), PoolConfig(workers=1, stall_minutes=0.01))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_worker_that_cannot_be_unpickled_ends_the_job(tmp_path):
    with pytest.raises(WorkersKeepDying, match=r"a worker cannot start: .*only the driver has this"):
        run(tmp_path, Unloadable(), PoolConfig(workers=1))


def test_a_cluster_that_does_not_answer(tmp_path):
    with pytest.raises(UserError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be used"):
        run(tmp_path, partial(Maker, str(tmp_path), 4), PoolConfig(ray="127.0.0.1:1"))


class Holder:
    def hold(self) -> None:
        """Answers once it has its core."""


class Unloadable:
    """Fails where it is unpickled, as code does that a machine does not have."""

    def __call__(self) -> Maker:
        raise AssertionError("it is never called")

    def __reduce__(self):
        return _fail, ()


def _fail() -> None:
    raise ModuleNotFoundError("only the driver has this")
