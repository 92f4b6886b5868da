"""The part of a worker that is the same in every process: it reports, but not too often, and stops if its machine must go."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.units import Event, Unit, Worker
from jobs.work import Work

HERE = "this process"
BEAT = 2.0
"""Seconds after which a worker reports again within one item."""
RECYCLED = 1000
"""Items after which a worker is replaced, so that what libraries leak does not grow for days."""


def reports(worker: Worker, unit: Unit, beat: float, stopping: Callable[[], bool]) -> Iterator[tuple[Event, ...]]:
    """Run a unit, and yield what a driver must know: the first and the last event of every item, and one per `beat` seconds.

    Every stage of a watched item is reported. The end of an item is held back until the next event, which follows at once, so
    that both travel together. If `stopping` after an item, the unit ends there, and the last thing that is yielded is empty.
    """
    item, stage, sent = None, None, float("-inf")
    held: tuple[Event, ...] = ()
    events = worker.run(unit)
    for event in events:
        if event.ends_item and stopping():
            events.close()
            yield (*held, event)
            yield ()
            return
        now, watched = time.monotonic(), event.item in unit.watched and event.stage != stage
        if event.ends_item:
            held = (*held, event)
        elif event.item != item or event.item is None or watched or now - sent >= beat:
            item, stage, sent = event.item, event.stage, now
            yield (*held, event)
            held = ()
    if held:
        yield held


def run_inline(work: Work, make_worker: Callable[[], Worker]) -> None:
    """Run everything in this process, one unit after the other; SIGTERM ends it after the item in hand."""
    worker = make_worker()
    with held_signals(signal.SIGTERM) as caught:
        while work.remains:
            if caught:
                raise KeyboardInterrupt
            unit = work.next(HERE)
            if unit is None:
                time.sleep(1.0)  # Other drivers hold the rest.
                continue
            for events in reports(worker, unit, 0.0, lambda: bool(caught)):
                for event in events:
                    work.reported(event, HERE)
                if not events:
                    work.given_back(unit, HERE)
            if work.is_open(unit):
                work.finished(unit, HERE)


@contextmanager
def held_signals(*numbers: int) -> Iterator[list[int]]:
    """Hold back signals such as Ctrl-C and SIGTERM; yields a list of those that came.

    Raised at once, they may be lost in a destructor. In another thread than the main one nothing is held back.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
