"""The pool finishes what can be finished: workers that raise, die or hang cost what they touch and nothing else."""

import os
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import pool, ray_pool
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from jobs.ray_pool import init_ray
from jobs.units import ATTEMPTS, Event, Unit, WorkerIsBroken, WorkersKeepDying
from manifests.storage import Storage


@pytest.fixture(autouse=True)
def _workers_travel_by_value():
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Scribe:
    """Writes a file per unit; what its items do is told by `poison`: item -> raise, die, die-once or hang."""

    def __init__(self, folder: Path, poison: dict[int, str]):
        self.folder, self.poison = folder, poison
        if poison.get(-1) == "raise":
            raise ValueError("the worker cannot start")
        if poison.get(-1) == "die":
            os._exit(1)

    def run(self, unit: Unit):
        lines = []
        for item in range(4 * unit.index, 4 * unit.index + 4):
            yield Event(unit.index, item, "work", 0, 1)
            lines.append(unit.skipped.get(item) or self.work(item))
            yield Event(unit.index, item, "done", 1, 1)
        yield Event(unit.index, None, "commit", 0, 1)
        if self.poison.get(-2) == "die":
            os._exit(1)
        (self.folder / f"{unit.index}.txt").write_text("\n".join(lines))

    def work(self, item: int) -> str:
        kind = self.poison.get(item)
        if kind == "raise":
            raise OSError("the disk is full")
        if kind == "break":
            raise WorkerIsBroken("the device is lost")
        if kind == "hang":
            time.sleep(3600)
        if kind == "die" or (kind == "die-once" and not (self.folder / "died").exists()):
            (self.folder / "died").touch()
            os._exit(1)
        return f"item {item}"


def run(folder: Path, units: Iterable[int], poison: dict[int, str], config: PoolConfig, on_event=lambda event: None):
    """Run units of scribes."""
    ledger = Ledger(Storage(folder), "generate", lambda unit: (folder / f"{unit}.txt").exists())
    pool.run(units, partial(Scribe, folder, poison), config, on_event, ledger)


def wrote(folder: Path) -> dict[int, list[str]]:
    return {int(file.stem): file.read_text().split("\n") for file in folder.glob("*.txt")}


def items(unit: int) -> list[str]:
    return [f"item {4 * unit + i}" for i in range(4)]


def test_inline_runs_units_in_order(tmp_path):
    events = []
    run(tmp_path, [2, 0], {}, PoolConfig(inline=True), events.append)
    assert wrote(tmp_path) == {0: items(0), 2: items(2)}
    assert [e.item for e in events if e.stage == "done"] == [8, 9, 10, 11, 0, 1, 2, 3]


def test_what_a_worker_raises_stops_the_job_and_keeps_what_is_done(tmp_path):
    with pytest.raises(OSError, match="the disk is full"):
        run(tmp_path, [0, 1, 2], {5: "raise"}, PoolConfig(inline=True))
    assert wrote(tmp_path) == {0: items(0)}


def test_no_units_is_no_work(tmp_path):
    run(tmp_path, [], {-1: "raise"}, PoolConfig())


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("workers", -1, "--workers is -1"),
        ("threads", 0, "--threads is 0"),
        ("stall_minutes", 0.0, "--stall-minutes is 0"),
        ("ray", "ray://head:10001", "--ray is .ray:"),
    ],
)
def test_bad_config(field, value, says):
    with pytest.raises(ValueError, match=says):
        PoolConfig(**{field: value})


def test_every_unit_is_done_and_a_fatal_item_is_given_up(tmp_path):
    """In a session of Ray that the pool starts and ends; an item that kills its worker once is not given up."""
    import ray

    events = []
    poison = {2: "break", 5: "die", 10: "die-once"}
    run(tmp_path, range(5), poison, PoolConfig(workers=2), events.append)
    expected = {unit: items(unit) for unit in range(5)}
    last = f"at stage work, the last of {ATTEMPTS} that were lost to it"
    expected[0][2] = f"its worker broke (the device is lost) {last}"
    expected[1][1] = f"its worker died {last}"
    assert wrote(tmp_path) == expected
    assert {e.item for e in events if e.stage == "done"} == set(range(20))
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def session():
    """A session of Ray that was there before the pool."""
    import ray

    init_ray("local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("session")
class TestRay:
    def test_an_item_that_hangs_is_given_up(self, tmp_path, monkeypatch):
        """The clock of the driver stands still but for an hour after each event that precedes a hang."""
        now, hangs = [0.0], []

        def on_event(event: Event) -> None:
            if (event.item, event.stage) == (3, "work") and len(hangs) < ATTEMPTS:
                hangs.append(event)
                now[0] += 3600

        monkeypatch.setattr(ray_pool, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
        run(tmp_path, range(2), {3: "hang"}, PoolConfig(workers=1), on_event)
        reason = f"its worker fell silent for 30 minutes at stage work, the last of {ATTEMPTS} that were lost to it"
        assert wrote(tmp_path) == {0: [*items(0)[:3], reason], 1: items(1)}

    def test_what_a_worker_raises_arrives_as_it_was(self, tmp_path):
        with pytest.raises(OSError, match="the disk is full"):
            run(tmp_path, [0, 1], {5: "raise"}, PoolConfig(workers=1))
        assert wrote(tmp_path) == {0: items(0)}

    def test_a_worker_that_cannot_start_says_why(self, tmp_path):
        with pytest.raises(ValueError, match="the worker cannot start"):
            run(tmp_path, [0], {-1: "raise"}, PoolConfig())

    def test_workers_that_die_at_commit_are_not_blamed_on_an_item(self, tmp_path):
        with pytest.raises(WorkersKeepDying, match="3 workers died at stage commit of unit 0"):
            run(tmp_path, [0], {-2: "die"}, PoolConfig(workers=1))

    def test_workers_that_do_not_fit(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no worker fits: each takes --threads 1 and --gpus-per-worker 64, Ray has"
        ):
            run(tmp_path, [0], {}, PoolConfig(gpus_per_worker=64.0))

    def test_workers_that_die_at_once(self, tmp_path):
        with pytest.raises(WorkersKeepDying, match="3 workers died while starting"):
            run(tmp_path, [0], {-1: "die"}, PoolConfig())
