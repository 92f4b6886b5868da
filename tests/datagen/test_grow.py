"""A dataset that grows has the bytes of one that was asked for at once, whatever interrupts it."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from egg import EggConfig, egg_job

from datagen.generate import GenerateWorker, generate, make_plan
from datagen.grow import LEASE, _grow, grow
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from jobs.units import Unit
from manifests.dataset import Dataset
from manifests.errors import DamagedData, UserError
from manifests.plan import PlanMismatch, read_plan, replace_plan, write_plan
from manifests.shards import ShardWriter
from manifests.status import summarise
from manifests.storage import Storage
from manifests.verify import verify

INLINE = PoolConfig(inline=True)


def job(out: Path, identities: int, **changes):
    return egg_job(str(out), INLINE, identities=identities, identities_per_shard=3, save_meshes=True, **changes)


def hashes(folder: Path) -> dict[str, bytes]:
    """The bytes of the shards' files and of the meshes, without the records of how they were made."""
    found = (f for f in folder.rglob("*") if f.is_file() and f.parent.name in ("shards", "meshes"))
    return {f.name: f.read_bytes() for f in found if not f.name.endswith(".done.json")}


@pytest.fixture(scope="module")
def at_once(tmp_path_factory) -> dict[str, bytes]:
    """Eight eggs in three shards."""
    folder = tmp_path_factory.mktemp("eggs")
    generate(job(folder, 8))
    return hashes(folder)


def test_it_grows_by_what_is_lacking(tmp_path, at_once):
    """The two shards that were not full go on after their last head; those that are full are not made again."""
    generate(job(tmp_path, 2))
    first = (tmp_path / "shards/heads-000000.tar").stat()
    made = generate(job(tmp_path, 4))
    assert (made.plan.identities, made.plan.shards, len(made.committed())) == (4, 2, 2)
    assert (tmp_path / "shards/heads-000000.tar").stat().st_ino != first.st_ino
    full = (tmp_path / "shards/heads-000000.tar").stat()
    made = generate(job(tmp_path, 8))
    assert hashes(tmp_path) == at_once and list(verify(made, deep=True)) == []
    assert (tmp_path / "shards/heads-000000.tar").stat().st_mtime_ns == full.st_mtime_ns
    assert (summarise(made).kept, read_plan(Storage(tmp_path)).fingerprint) == (8, made.plan.fingerprint)


def test_heads_that_are_there_are_not_made_again(tmp_path, at_once, monkeypatch):
    generate(job(tmp_path, 5))
    made, original = [], Ledger.claim
    monkeypatch.setattr(Ledger, "claim", lambda self, unit: made.append(unit) or original(self, unit))
    before, added = GenerateWorker._add_identity, []

    def add(self, unit, identity, writer, run):
        added.append(identity)
        yield from before(self, unit, identity, writer, run)

    monkeypatch.setattr(GenerateWorker, "_add_identity", add)
    generate(job(tmp_path, 8))
    assert (made, added) == ([LEASE, 1, 2], [5, 6, 7]) and hashes(tmp_path) == at_once


@pytest.mark.parametrize("writes", range(6))
def test_killed_while_it_grows(tmp_path, at_once, monkeypatch, writes):
    """It is the old dataset or the new one, and either goes on."""
    generate(job(tmp_path, 5))
    done, write = [], Storage.write

    def dying(self, name, data):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(name)
        write(self, name, data)

    eight = job(tmp_path, 8)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", dying)
        try:
            _grow(Storage(tmp_path), make_plan(eight, eight.source.open("cpu")))
        except KeyboardInterrupt:
            assert writes < 5
    assert {fault.problem for fault in verify(Dataset(str(tmp_path)), deep=True)} <= {"not made yet"}
    if writes % 2:
        generate(job(tmp_path, Dataset(str(tmp_path)).plan.identities))
        assert list(verify(Dataset(str(tmp_path)), deep=True)) == []
    generate(eight)
    assert hashes(tmp_path) == at_once


def test_it_never_shrinks(tmp_path):
    generate(job(tmp_path, 4))
    with pytest.raises(PlanMismatch, match="identities is 4, asked for 2"):
        generate(job(tmp_path, 2))


def test_damage_is_not_grown_from(tmp_path):
    generate(job(tmp_path, 2))
    tar = tmp_path / "shards/heads-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(DamagedData, match=r"heads-000000\.tar is damaged; run spinset repair"):
        generate(job(tmp_path, 4))
    assert read_plan(Storage(tmp_path)).identities == 2 and Dataset(str(tmp_path)).committed() == [0]


def test_not_while_others_are_at_work(tmp_path):
    """Their workers would commit shards of the smaller dataset; nor may one of the old size begin beside one that grows."""
    generate(job(tmp_path, 2))
    other = Ledger(Storage(tmp_path), "generate", lambda unit: False, note="2")
    with (
        other,
        pytest.raises(UserError, match=r"other commands are at work on .*, not with 4 identities; give this one"),
    ):
        generate(job(tmp_path, 4))
    other = Ledger(Storage(tmp_path), "generate", lambda unit: False, note="4")
    with other, pytest.raises(UserError, match=r"other commands are at work on .*, not with 2 identities"):
        generate(job(tmp_path, 2))


def test_of_parts_that_grow_together_one_does_it(tmp_path, at_once):
    generate(job(tmp_path, 5))
    eight = job(tmp_path, 8)
    plan = make_plan(eight, eight.source.open("cpu"))

    def part(_: int) -> None:
        storage = Storage(tmp_path)
        with Ledger(storage, "generate", lambda unit: False, note="8") as ledger:
            grow(storage, plan, ledger)
            time.sleep(1.0)  # as one that goes on to make shards

    with ThreadPoolExecutor(4) as parts:
        list(parts.map(part, range(4)))
    assert read_plan(Storage(tmp_path)).identities == 8
    generate(eight)
    assert hashes(tmp_path) == at_once


def test_a_worker_of_the_old_size_commits_nothing(tmp_path):
    """Its command was killed, and it lives on for a moment."""
    five = job(tmp_path, 5)
    plan = write_plan(Storage(tmp_path), make_plan(five, five.source.open("cpu")))
    events = GenerateWorker(five, plan).run(Unit(1))
    while next(events).stage != "commit":
        pass
    replace_plan(Storage(tmp_path), replace(plan, identities=8))
    with pytest.raises(UserError, match="has grown since this command began"):
        next(events)
    assert Dataset(str(tmp_path)).committed() == []


def test_a_dead_command_of_another_machine_is_no_obstacle(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr("jobs.ledger.DEAD", 0.2)
    generate(job(tmp_path, 5))
    Storage(tmp_path).write(f"work/generate/{'0' * 12}-1-{'0' * 8}", b"7 5")
    generate(job(tmp_path, 8))
    assert hashes(tmp_path) == at_once and not list((tmp_path / "work/generate").glob("0*"))


def test_a_kill_after_it_has_grown_loses_no_head(tmp_path, at_once, monkeypatch):
    """The heads of the last shard are kept until it is committed again."""
    generate(job(tmp_path, 5))
    dying = egg_job(str(tmp_path), INLINE, source=EggConfig(), identities=8, identities_per_shard=3, save_meshes=True)
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "commit", lambda self, run: os.kill(os.getpid(), signal.SIGKILL))
        child = os.fork()
        if not child:
            generate(dying)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    made, before = [], GenerateWorker._add_identity

    def add(self, unit, identity, writer, run):
        made.append(identity)
        yield from before(self, unit, identity, writer, run)

    monkeypatch.setattr(GenerateWorker, "_add_identity", add)
    generate(dying)
    assert made == [5, 6, 7] and hashes(tmp_path) == at_once
