"""Leases and signs of life: one driver has a unit, a dead one's is taken over, and what was lost is remembered."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import ledger as module
from jobs.ledger import Ledger, Loss
from manifests import storage as storage_module
from manifests import writers
from manifests.storage import Storage


def never(unit: int) -> bool:
    return False


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path) -> Storage:
    return Storage(tmp_path if request.param == "local" else f"memory://{tmp_path}")


def test_one_of_two_has_a_unit(storage):
    with Ledger(storage, "generate", never) as one, Ledger(storage, "generate", never) as other:
        assert one.claim(3) and one.claim(3) and not other.claim(3) and other.claim(4)
        assert len(one.others()) == len(other.others()) == 1
        one.release(3)
        assert other.claim(3)
    with Ledger(storage, "generate", never) as third:
        assert third.claim(3) and third.claim(4), "the others have left"
        assert third.others() == []


def test_jobs_do_not_meet(storage):
    with Ledger(storage, "generate", never) as one, Ledger(storage, "score", never) as other:
        assert one.claim(0) and other.claim(0) and not one.others()


DEAD = """
import os
from jobs.ledger import Ledger
from manifests.storage import Storage

ledger = Ledger(Storage({folder!r}), "generate", lambda unit: False)
ledger.__enter__()
assert ledger.claim(7)
os._exit(1)
"""


def test_what_a_dead_driver_held_is_taken_over_once(tmp_path):
    """At once where it ran on this machine, and its leftovers of the unit are cleared."""
    subprocess.run([sys.executable, "-c", DEAD.format(folder=str(tmp_path))], check=False, env=_environment())
    cleared: list[int] = []
    storage = Storage(tmp_path)
    with Ledger(storage, "generate", never, cleared.append) as one, Ledger(storage, "generate", never) as other:
        assert one.claim(7) and not other.claim(7)
        assert cleared == [7] and one.others() == [other.name.rpartition("/")[2]]
        one.release(7)
        assert storage.names("work/generate/leases") == []


def test_the_last_driver_leaves_no_file_of_the_dead(tmp_path):
    """Among them the lease of a unit that is done, which nobody takes over."""
    subprocess.run([sys.executable, "-c", DEAD.format(folder=str(tmp_path))], check=False, env=_environment())
    with Ledger(Storage(tmp_path), "generate", lambda unit: True):
        pass
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_driver_of_another_machine_is_dead_when_it_gives_no_sign(tmp_path, monkeypatch):
    """By the clock of who looks, whatever the clocks of the machines show; a sign of life starts it anew."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(writers, "_processes", lambda: "b" * 12)
    storage = Storage(tmp_path)
    elsewhere = "a" * 12 + f"-{os.getpid()}-00000000"
    storage.write(f"work/generate/{elsewhere}", b"0")
    storage.create("work/generate/leases/2.0", elsewhere.encode())
    with Ledger(storage, "generate", never) as ledger:
        assert not ledger.claim(2)
        now[0] = module.DEAD - 1
        assert not ledger.claim(2)
        storage.write(f"work/generate/{elsewhere}", b"1")
        now[0] = module.DEAD + 1
        assert not ledger.claim(2)
        now[0] = 2 * module.DEAD
        assert not ledger.claim(2)
        now[0] = 2 * module.DEAD + 2
        assert ledger.claim(2)


def test_a_lease_without_a_name_is_not_for_ever(tmp_path, monkeypatch):
    """Of a driver that died between making the file and writing its name."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    storage = Storage(tmp_path)
    storage.create("work/generate/leases/2.0", b"")
    with Ledger(storage, "generate", never) as ledger:
        assert not ledger.claim(2)
        now[0] = module.DEAD + 1
        assert ledger.claim(2)


def test_losses_are_remembered_and_forgotten(storage):
    lost = [Loss(5, "mesh", "died", "one"), Loss(None, "start", "broke", "two", is_memory=True, blamed=False)]
    with Ledger(storage, "generate", never) as ledger:
        assert ledger.losses(1) == []
        ledger.record(1, lost)
    with Ledger(storage, "generate", never, remembers=True) as ledger:
        assert ledger.losses(1) == lost
    with Ledger(storage, "generate", never) as ledger:
        assert ledger.losses(1) == [], "another kind of job tries anew"
        ledger.record(1, lost)
        ledger.record(1, [])
        assert ledger.losses(1) == []


def test_a_missed_sign_of_life_is_given_again(tmp_path, monkeypatch):
    """A storage that fails for a while does not end the driver."""
    monkeypatch.setattr(module, "BEAT", 0.01)
    fails = [OSError("the storage is away")] * 3
    original, written = Storage.write, []

    def write(self: Storage, name: str, data: bytes) -> None:
        if data != b"0" and fails:
            raise fails.pop()
        written.append(data)
        original(self, name, data)

    monkeypatch.setattr(Storage, "write", write)
    with Ledger(Storage(tmp_path), "generate", never) as ledger:
        while len(written) < 3:
            ledger._ended.wait(0.01)
    assert written[:2] == [b"0", b"4"] and not fails


def test_scratch_of_a_living_writer_in_another_container_is_kept(tmp_path, monkeypatch):
    """Two containers with one host name that count their processes from 1; without a lease it goes at last."""
    storage, other = Storage(tmp_path), Storage(tmp_path)
    monkeypatch.setattr(writers, "_processes", lambda: "a" * 12)
    scratch, beside = storage.scratch("shards/heads-000002.tar"), storage.scratch("shards/heads-000003.tar")
    for file in (scratch, beside):
        file.write_bytes(b"half")
    monkeypatch.setattr(writers, "_processes", lambda: "b" * 12)
    assert other.clear_leftovers() == other.clear_leftovers("shards/heads-000002") == 0
    for file in (scratch, beside):
        os.utime(file, (0, time.time() - storage_module.UNSIGNED - 1))
    assert other.clear_leftovers() == 0
    assert other.clear_leftovers("shards/heads-000002") == 1
    assert not scratch.exists() and beside.exists()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])}
