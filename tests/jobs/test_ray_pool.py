"""Machines that come and go: none is waited for, none of their losses is blamed on an item, and all are used."""

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from jobs.pool import ATTEMPTS, Event, PoolConfig, Unit, run

THREADS, CORES = 2, 3
"""One worker fits on each machine, though two machines have cores for three."""


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose head has no cores for workers, and two machines."""
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
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
    run(range(2), partial(Traveller, tmp_path, 2 + ATTEMPTS), config, on_event)
    assert {file.stem: file.read_text() for file in tmp_path.glob("*.txt")} == {"0": "", "1": ""}
    assert len(lost) == ATTEMPTS
