"""What is reported of a unit, and where it ends."""

from types import SimpleNamespace

import pytest

from jobs import worker_process
from jobs.units import Event, Unit
from jobs.worker_process import reports

STEPS = 20


class Clock(SimpleNamespace):
    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock(now=0.0)
    monkeypatch.setattr(worker_process, "time", clock)
    return clock


class Walker:
    """Three items of two stages, of which each step takes a second."""

    def __init__(self, clock: Clock):
        self.clock, self.closed = clock, False

    def run(self, unit: Unit):
        try:
            for item in range(3):
                for step in range(STEPS):
                    yield Event(unit.index, item, "head" if step < STEPS // 2 else "views", step, STEPS)
                    self.clock.now += 1
                yield Event(unit.index, item, "done", STEPS, STEPS)
            yield Event(unit.index, None, "commit", 0, 1)
        except GeneratorExit:
            self.closed = True
            raise


def never() -> bool:
    return False


def told(reported) -> list[list[tuple[int | None, str, int]]]:
    return [[(event.item, event.stage, event.done) for event in events] for events in reported]


def test_ends_travel_with_the_next_beginning(clock):
    assert told(reports(Walker(clock), Unit(0), 100.0, never)) == [
        [(0, "head", 0)],
        [(0, "done", 20), (1, "head", 0)],
        [(1, "done", 20), (2, "head", 0)],
        [(2, "done", 20), (None, "commit", 0)],
    ]


def test_beats_are_seconds_apart(clock):
    reported = told(reports(Walker(clock), Unit(0), 6.0, never))
    assert [event for events in reported for event in events if event[0] == 0] == [
        (0, "head", 0),
        (0, "head", 6),
        (0, "views", 12),
        (0, "views", 18),
        (0, "done", 20),
    ]


def test_every_stage_of_a_watched_item(clock):
    reported = told(reports(Walker(clock), Unit(0, watched=frozenset({1})), 100.0, never))
    assert [(1, "views", 10)] in reported and [(0, "views", 10)] not in reported


def test_a_unit_that_is_given_back_ends_after_an_item(clock):
    walker = Walker(clock)
    reported = told(reports(walker, Unit(0), 100.0, lambda: clock.now >= STEPS + 1))
    assert reported == [[(0, "head", 0)], [(0, "done", 20), (1, "head", 0)], [(1, "done", 20)], []]
    assert walker.closed


def test_the_last_end_is_reported_without_a_commit(clock):
    class Short(Walker):
        def run(self, unit: Unit):
            yield Event(unit.index, 0, "score", 0, 1)
            yield Event(unit.index, 0, "done", 1, 1)

    assert told(reports(Short(clock), Unit(0), 1.0, never)) == [[(0, "score", 0)], [(0, "done", 1)]]
