"""A job waits while the disk is too full, and goes on when there is space."""

from collections import namedtuple

import pytest

from jobs import disk
from jobs.disk import DiskGate
from jobs.ledger import Ledger
from jobs.units import Unit
from jobs.work import Work
from manifests.storage import Storage

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def used(monkeypatch) -> list[float]:
    """The share of the disk in use, which a test may change."""
    share = [0.95]
    monkeypatch.setattr(disk, "LOOK", 0.0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1000, 1000 * share[0], 1000 * (1 - share[0])))
    return share


def test_units_begin_when_there_is_space(tmp_path, used, capsys):
    storage = Storage(tmp_path)
    with Ledger(storage, "test", lambda unit: False) as ledger:
        work = Work([Unit(0), Unit(1)], ledger, max_disk=0.9)
        assert work.next("here") is None and work.next("here") is None and work.remains
        used[0] = 0.5
        assert work.next("here") == Unit(0)
        used[0] = 0.91
        assert work.next("here") is None
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"the disk of {tmp_path} is 95.0% full, --max-disk is 0.9: no shard is begun until there is space",
        f"the disk of {tmp_path} is 50.0% full, --max-disk is 0.9: there is space again",
        f"the disk of {tmp_path} is 91.0% full, --max-disk is 0.9: no shard is begun until there is space",
    ]


def test_without_a_limit_nothing_waits(tmp_path, used):
    assert DiskGate(Storage(tmp_path), 1.0).look()
    assert DiskGate(Storage("memory://heads"), 0.1).look()
