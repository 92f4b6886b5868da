"""The status of a dataset is what its commit records hold, whatever state it is in."""

import json
from dataclasses import replace

import pytest
from small import small_plan, write_shard

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.shards import ShardWriter
from manifests.status import SHOWN, Failure, summarise
from manifests.storage import Storage
from manifests.writers import writer_name

FAILED = {"outcome": schema.FAILED, "views": 0, "stage": "mesh", "reason": "ValueError: no surface"}


def commit(storage, plan, shard, run, failed=()):
    """Commit a shard of identities without views."""
    with ShardWriter(storage, plan, shard) as writer:
        for identity in plan.identities_of(shard):
            row = {"identity": identity, "seed": identity, "outcome": schema.KEPT, "views": 0, "facts": "{}"}
            writer.add_identity({**row, **(FAILED if identity in failed else {})})
        writer.commit(run)


def run(finished: str, seconds: float, each: float, identities, host: str = "a", **more):
    own = {str(identity): each for identity in identities}
    return {"finished": finished, "seconds": seconds, "identity_seconds": own, "host": host, **more}


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage(tmp_path)


def test_an_empty_dataset(storage):
    write_plan(storage, small_plan())
    status = summarise(Dataset(storage))
    assert (status.shards_done, status.identity_seconds, status.identities_per_hour) == (0, 0.0, 0.0)
    assert status.seconds_left is status.worker_seconds_left is status.bottleneck is None
    assert "0 of 3 shards, 0 of 5 identities" in str(status) and not status.is_complete


def test_rates_and_the_time_left(storage):
    """Two machines that each make two identities in 10 minutes; the oldest shard is of the day before."""
    plan = small_plan(identities=20)
    write_plan(storage, plan)
    commit(storage, plan, 0, run("2026-11-30T08:00:00Z", 4000, 2000.0, (0, 1)))
    for shard, (host, minute) in enumerate([("a", 10), ("b", 10), ("a", 20), ("b", 20)], 1):
        own = plan.identities_of(shard)
        commit(storage, plan, shard, run(f"2026-12-01T12:{minute}:00Z", 600, 300.0, own, host))
    status = summarise(Dataset(storage))
    assert status.identities_per_hour == pytest.approx(8 * 3)
    assert status.identity_seconds == pytest.approx((2 * 2000 + 8 * 300) / 10)
    assert status.worker_seconds_left.value == pytest.approx(10 * status.identity_seconds)
    assert status.seconds_left.value == pytest.approx(10 / 24 * 3600)
    assert status.seconds_left.low < status.seconds_left.value < status.seconds_left.high
    assert [(h.host, h.identities, h.last_commit) for h in status.hosts] == [
        ("a", 6, "2026-12-01T12:20:00Z"),
        ("b", 4, "2026-12-01T12:20:00Z"),
    ]


def test_a_shard_longer_than_an_hour_counts_with_its_part_of_the_hour(storage):
    plan = small_plan(identities=20)
    write_plan(storage, plan)
    commit(storage, plan, 0, run("2026-12-01T12:00:00Z", 7200, 3600.0, (0, 1)))
    assert summarise(Dataset(storage)).identities_per_hour == pytest.approx(1)


def test_failures_are_grouped_by_cause(storage):
    plan = small_plan(identities=60, per_shard=30)
    write_plan(storage, plan)
    rows = [Failure(i, i, "mesh", f"ValueError: no surface in {i}", None, "ab", "a", 2) for i in range(29)]
    rows.append(Failure(29, 29, "head", "worker was killed by SIGKILL", "SIGKILL", None, "b", 3))
    failures = [vars(row) for row in rows]
    commit(storage, plan, 0, run("2026-12-01T12:00:00Z", 60, 2.0, range(30), failures=failures), range(30))
    status = summarise(Dataset(storage))
    assert status.failures == tuple(rows)
    assert status.failures_by_cause == {"ValueError": 29, "worker was killed by SIGKILL": 1}
    text = str(status)
    assert "failed: 29 x ValueError" in text and text.count("failed: identity") == SHOWN
    assert f"and {30 - SHOWN} more failed" in text


def test_failures_of_older_records_are_read_from_the_table(storage):
    plan = small_plan()
    write_plan(storage, plan)
    commit(storage, plan, 0, run("2026-12-01T12:00:00Z", 60, 2.0, (0, 1)), failed=(1,))
    assert summarise(Dataset(storage)).failures == (Failure(1, 1, "mesh", "ValueError: no surface"),)


def test_stages_and_what_waits(storage):
    plan = small_plan()
    write_plan(storage, plan)
    stages = {"head": 1.0, "views": 3.0, "mesh": 2.0, "encode": 10.0}
    commit(storage, plan, 0, run("2026-12-01T12:00:00Z", 60, 2.0, (0, 1), stage_seconds=stages))
    write_shard(storage, plan, 1)
    status = summarise(Dataset(storage))
    assert status.stage_seconds == {"head": 0.5, "views": 1.5, "mesh": 1.0, "encode": 5.0}
    assert status.waiting == pytest.approx(0.75) and status.bottleneck == "meshes and files"


def test_damaged_records_are_named_and_the_rest_is_counted(storage):
    plan = small_plan()
    write_plan(storage, plan)
    for shard in range(3):
        write_shard(storage, plan, shard)
    storage.write("shards/heads-000001.done.json", b'{"fingerprint": 1}')
    status = summarise(Dataset(storage))
    assert (status.shards_done, status.kept) == (2, 3)
    assert status.damaged == ("shards/heads-000001.done.json",)
    assert "damaged: shards/heads-000001.done.json" in str(status)


def test_commands_at_work_are_counted(storage):
    """One of this process, and one of another machine; a dead one of this machine is not."""
    write_plan(storage, small_plan())
    machine, number, rest = writer_name().split("-")
    for name in (f"{machine}-{number}-{rest}", f"{'0' * 12}-1-{rest}", f"{machine}-4194304-{rest}"):
        storage.write(f"work/generate/{name}", b"0")
    assert summarise(Dataset(storage)).commands == 2


def test_a_pack_has_a_status(storage):
    """Its records hold no times."""
    plan = small_plan(packed={"shards": [[0, 3], [4]]}, identities=3)
    write_plan(storage, plan)
    commit(storage, plan, 0, {"host": "a", "finished": "2026-12-01T12:00:00Z", "identity_seconds": {}})
    status = summarise(Dataset(storage))
    assert (status.kept, status.hosts[0].identities, status.identities_per_hour) == (2, 2, 0.0)
    assert json.dumps(replace(status, failures=()).stage_seconds) == "{}"
