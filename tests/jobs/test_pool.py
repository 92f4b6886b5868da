"""The pool finishes what can be finished: workers that raise, die or hang cost what they touch and nothing else."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import ray_pool
from jobs.pool import ATTEMPTS, Event, PoolConfig, Unit, WorkerIsBroken, WorkersKeepDying, run


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


def wrote(folder: Path) -> dict[int, list[str]]:
    return {int(file.stem): file.read_text().split("\n") for file in folder.glob("*.txt")}


def items(unit: int) -> list[str]:
    return [f"item {4 * unit + i}" for i in range(4)]


def test_inline_runs_units_in_order(tmp_path):
    events = []
    run([2, 0], partial(Scribe, tmp_path, {}), PoolConfig(inline=True), events.append)
    assert wrote(tmp_path) == {0: items(0), 2: items(2)}
    assert [e.item for e in events if e.stage == "done"] == [8, 9, 10, 11, 0, 1, 2, 3]


def test_what_a_worker_raises_stops_the_job_and_keeps_what_is_done(tmp_path):
    with pytest.raises(OSError, match="the disk is full"):
        run([0, 1, 2], partial(Scribe, tmp_path, {5: "raise"}), PoolConfig(inline=True), lambda event: None)
    assert wrote(tmp_path) == {0: items(0)}


def test_no_units_is_no_work(tmp_path):
    run([], partial(Scribe, tmp_path, {-1: "raise"}), PoolConfig(), lambda event: None)


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


class TestRay:
    def test_every_unit_is_done_and_a_fatal_item_is_given_up(self, tmp_path):
        """Items that break or kill their worker every time are given up; one that kills it once is not."""
        events = []
        config = PoolConfig(workers=2)
        poison = {2: "break", 5: "die", 10: "die-once"}
        run(range(5), partial(Scribe, tmp_path, poison), config, events.append)
        expected = {unit: items(unit) for unit in range(5)}
        expected[0][2] = "its worker broke 3 times (the device is lost) at stage work"
        expected[1][1] = "its worker died 3 times at stage work"
        assert wrote(tmp_path) == expected
        assert {e.item for e in events if e.stage == "done"} == set(range(20))

    def test_an_item_that_hangs_is_given_up(self, tmp_path, monkeypatch):
        """The clock of the driver stands still but for an hour after each event that precedes a hang."""
        now, hangs = [0.0], []

        def on_event(event: Event) -> None:
            if (event.item, event.stage) == (3, "work") and len(hangs) < ATTEMPTS:
                hangs.append(event)
                now[0] += 3600

        monkeypatch.setattr(ray_pool, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
        run(range(2), partial(Scribe, tmp_path, {3: "hang"}), PoolConfig(workers=1), on_event)
        reason = "its worker fell silent 3 times for 30 minutes at stage work"
        assert wrote(tmp_path) == {0: [*items(0)[:3], reason], 1: items(1)}

    def test_what_a_worker_raises_arrives_as_it_was(self, tmp_path):
        with pytest.raises(OSError, match="the disk is full"):
            run([0, 1], partial(Scribe, tmp_path, {5: "raise"}), PoolConfig(workers=1), lambda event: None)
        assert wrote(tmp_path) == {0: items(0)}

    def test_a_worker_that_cannot_start_says_why(self, tmp_path):
        with pytest.raises(ValueError, match="the worker cannot start"):
            run([0], partial(Scribe, tmp_path, {-1: "raise"}), PoolConfig(), lambda event: None)

    def test_workers_that_die_at_commit_are_not_blamed_on_an_item(self, tmp_path):
        with pytest.raises(WorkersKeepDying, match="3 workers died at stage commit of unit 0"):
            run([0], partial(Scribe, tmp_path, {-2: "die"}), PoolConfig(workers=1), lambda event: None)

    def test_workers_that_do_not_fit(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no worker fits: each takes --threads 1 and --gpus-per-worker 64, Ray has"
        ):
            run([0], partial(Scribe, tmp_path, {}), PoolConfig(gpus_per_worker=64.0), lambda event: None)

    def test_workers_that_die_at_once(self, tmp_path):
        with pytest.raises(WorkersKeepDying, match="3 workers died while starting"):
            run([0], partial(Scribe, tmp_path, {-1: "die"}), PoolConfig(), lambda event: None)
