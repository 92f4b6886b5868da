"""Machines that come and go: none is waited for, none of their losses is blamed on an item, and all are used."""

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from jobs import pool
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from jobs.ray_pool import RayPool, init_ray
from jobs.units import ATTEMPTS, Event, NoCapacity, Unit, WorkersKeepDying
from jobs.work import Work
from manifests.errors import UserError
from manifests.storage import Storage

THREADS, CORES = 2, 3
"""One worker fits on each machine, though two machines have cores for three."""


@pytest.fixture(autouse=True)
def _workers_travel_by_value(monkeypatch):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose head has no cores for workers, and two machines."""
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=CORES)
    yield cluster
    cluster.shutdown()


class Traveller:
    """Notes the machine on which each item begins; item 0 waits until items have been on so many machines."""

    def __init__(self, folder: Path, machines: int):
        self.folder, self.machines = folder, machines

    def run(self, unit: Unit):
        import ray

        node = ray.get_runtime_context().get_node_id()
        for item in range(2 * unit.index, 2 * unit.index + 2):
            (self.folder / f"{item}-{node}").touch()
            yield Event(unit.index, item, "work", 0, 1)
            while item == 0 and len({file.name.split("-")[1] for file in self.folder.glob("*-*")}) < self.machines:
                time.sleep(0.1)
            yield Event(unit.index, item, "done", 1, 1)
        (self.folder / f"{unit.index}.txt").write_text(" ".join(unit.skipped.values()))


def run(folder: Path, make_worker, config: PoolConfig) -> None:
    """Run one unit."""
    pool.run([0], make_worker, config, lambda event: None, Ledger(Storage(folder), "generate", lambda unit: False))


def test_lost_machines_are_nobodys_fault_and_new_ones_are_used(cluster, tmp_path):
    lost = []

    def on_event(event: Event) -> None:
        """The machine of item 2 is lost as often as an item may be fatal to a worker; another one joins each time."""
        if (event.item, event.stage) == (2, "work") and len(lost) < ATTEMPTS:
            there = {node.node_id: node for node in cluster.list_all_nodes()}
            (node,) = {file.name.split("-")[1] for file in tmp_path.glob("2-*")} & set(there) - set(lost)
            lost.append(node)
            cluster.remove_node(there[node], allow_graceful=False)
            cluster.add_node(num_cpus=CORES)

    config = PoolConfig(threads=THREADS, ray=cluster.address)
    with Ledger(Storage(tmp_path), "generate", lambda unit: False) as ledger:
        workers = RayPool(
            Work([Unit(0), Unit(1)], ledger, on_event), partial(Traveller, tmp_path, 2 + ATTEMPTS), config
        )
        assert workers.capacity() == 2
        workers.run()
    assert {file.stem: file.read_text() for file in tmp_path.glob("*.txt")} == {"0": "", "1": ""}
    assert len(lost) == ATTEMPTS


def test_a_machine_that_is_taken_is_waited_for_and_then_said(tmp_path):
    """In a session of Ray that was there before, and is afterwards."""
    import ray

    init_ray("local", num_cpus=1, include_dashboard=False)
    try:
        holder = ray.remote(num_cpus=1)(Holder).remote()
        ray.get(holder.hold.remote())
        with pytest.raises(NoCapacity, match=r"no worker could be placed for 0\.01 minutes"):
            run(tmp_path, partial(Traveller, tmp_path, 1), PoolConfig(workers=1, stall_minutes=0.01))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_worker_that_cannot_be_unpickled_ends_the_job(tmp_path):
    with pytest.raises(WorkersKeepDying, match=r"a worker cannot start: .*only the driver has this"):
        run(tmp_path, Unloadable(), PoolConfig(workers=1))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_a_cluster_that_does_not_answer(address, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=f"the Ray cluster at {address} cannot be used"):
        run(tmp_path, partial(Traveller, tmp_path, 1), PoolConfig(ray=address))


class Holder:
    def hold(self) -> None:
        """Answers once it has its core."""


class Unloadable:
    """Fails where it is unpickled, as code does that a machine does not have."""

    def __call__(self) -> Traveller:
        raise AssertionError("it is never called")

    def __reduce__(self):
        return _fail, ()


def _fail() -> None:
    raise ModuleNotFoundError("only the driver has this")
