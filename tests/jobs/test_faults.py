"""Two hundred identities on machines of a cluster where everything goes wrong: what is fatal is given up, the rest is whole."""

import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import workers
from workers import PER_SHARD, Maker, hashes, ledger_of, make

from jobs import ray_pool
from jobs.pool import PoolConfig
from jobs.ray_pool import RayPool
from jobs.trust import Trust
from jobs.units import ATTEMPTS, Event
from jobs.work import Work
from manifests.plan import write_plan
from manifests.storage import Storage

IDENTITIES = 200
FATAL = {17: "die", 42: "hang", 77: "raise", 101: "memory", 150: "break"}


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose head has no cores for workers, and two machines of three cores."""
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers find the module of the fake by the path of the process that starts them.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(workers.__file__).parent), *sys.path]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=3)
    yield cluster
    cluster.shutdown()


def test_a_night_on_a_cluster(cluster, tmp_path, monkeypatch):
    """Identities that kill, hang, raise, break and eat memory; a machine lost, one that joins, and a notice to a worker."""
    notes, out = tmp_path / "notes", tmp_path / "heads"
    notes.mkdir()
    maker = Maker(str(out), IDENTITIES, {**FATAL, 60: "die-once"}, str(notes))
    storage = Storage(out)
    write_plan(storage, workers.small_plan(IDENTITIES, PER_SHARD))
    skipped_hours, seen, used, joined, noticed = [0.0], [], set(), [], []
    monkeypatch.setattr(
        ray_pool,
        "time",
        SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * skipped_hours[0], sleep=time.sleep),
    )

    def on_event(event: Event) -> None:
        seen.append(event)
        used.update(one.machine.node for one in pool.running.values())
        at_42 = [one for one in pool.running.values() if one.last and one.last.item == 42]
        if event.item == 42 and any(event.stage == "views" or 42 not in one.unit.watched for one in at_42):
            # An hour passes, in which all report but the one that hangs. From the second time on, that is after "views".
            skipped_hours[0] += 1
            for one in pool.running.values():
                if one not in at_42:
                    one.heard = ray_pool.time.monotonic()
        if len(seen) == 100:
            lost = next(node for node in cluster.list_all_nodes() if node.node_id in used)
            cluster.remove_node(lost, allow_graceful=False)
            joined.append(cluster.add_node(num_cpus=3).node_id)
        if event.item == 121 and event.ends_item and len(noticed) == 0:
            (note,) = notes.glob("121-*")
            noticed.append(int(note.name.split("-")[1]))
            os.kill(noticed[0], signal.SIGTERM)

    config = PoolConfig(workers=4, ray=cluster.address)
    with ledger_of(str(out)) as ledger:
        units = [workers.Unit(index) for index in range(IDENTITIES // PER_SHARD)]
        work = Work(units, ledger, on_event)
        pool = RayPool(work, partial(Maker, **vars(maker)), config)
        wide = PoolConfig(threads=2, ray=cluster.address)
        assert RayPool(work, partial(Maker, **vars(maker)), wide).capacity() == 2, "one on each machine of three cores"
        pool.run()
    dataset = workers.Dataset(str(out))
    rows = dataset.all_identities.to_pylist()
    assert [row["identity"] for row in rows] == list(range(IDENTITIES))
    last = f"at stage views, the last of {ATTEMPTS} that were lost to it"
    assert {row["identity"]: row["reason"] for row in rows if row["outcome"] == "failed"} == {
        17: f"its worker died {last}",
        42: f"its worker fell silent for 30 minutes {last}",
        77: "OSError: it cannot be made",
        101: f"its worker broke (no memory is left) {last}",
        150: f"its worker broke (the device is lost) {last}",
    }
    assert joined[0] in used, "the machine that joined was not used"
    again = [int(note.name.split("-")[1]) for note in notes.glob("121-*")]
    assert len(again) == 2, "the unit was given back after the item in hand, and made elsewhere"
    fatal = {f"heads-{identity // PER_SHARD:06d}" for identity in FATAL}
    undisturbed = make(Maker(str(tmp_path / "same"), IDENTITIES), PoolConfig(inline=True))
    expected = {file: value for file, value in hashes(undisturbed).items() if file.split(".")[0] not in fatal}
    assert {file: value for file, value in hashes(dataset).items() if file.split(".")[0] not in fatal} == expected


def test_a_machine_that_does_not_see_the_dataset(tmp_path):
    """A worker looks for a file that the driver has just written there."""
    ledger = ledger_of(str(tmp_path))
    trust = Trust.of_driver(ledger)
    with pytest.raises(ValueError, match=r"does not see .* as the driver does; mount it there at the same path"):
        trust.check("node")
    with ledger:
        assert trust.check("node").node == "node"


def test_a_machine_with_other_versions(tmp_path):
    with ledger_of(str(tmp_path)) as ledger:
        trust = Trust.of_driver(ledger)
        other = replace(trust, has={**trust.has, "torch": "1.0", "code of spinset": "0" * 12})
        with pytest.raises(
            ValueError, match=r"code of spinset \w+, the driver 0{12}; torch .*, the driver 1.0; install"
        ):
            other.check("node")
