"""Shows the progress of a job or a step on stderr: live bars on a terminal, and otherwise a plain line every minute."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jobs.units import ELSEWHERE, Event

FIRST_SECONDS, PLAIN_SECONDS, LATER_SECONDS = 2.0, 10.0, 60.0
"""Seconds until the first plain line, between those of the first minute, and between later ones."""


@contextmanager
def step(what: str, total: int | None = None, already: int = 0) -> Iterator[Callable[..., None]]:
    """Show the progress of one step; yields `advance(amount=1)`, which may be called from this thread only.

    A step without a total, such as loading a model, shows its name and how long it has run. Steps are not nested.
    """
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    started, done = time.monotonic(), already

    def line() -> str:
        seconds = time.monotonic() - started
        if total is None:
            return f"{what}: running for {timedelta(seconds=round(seconds))}"
        return f"{what}: {done / max(total, 1e-9):.0%}, {_left(total - done, done - already, seconds)}"

    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total, completed=already)  # pyright: ignore[reportArgumentType]

        def advance(amount: int = 1) -> None:
            nonlocal done
            done += amount
            bar.update(task, completed=done)

        with _plain_lines(console, line):
            yield advance


@contextmanager
def _plain_lines(console: Console, line: Callable[[], str]) -> Iterator[None]:
    """Print a line at intervals while the block runs, also while it computes without a pause; nothing on a terminal."""
    if console.is_terminal:
        yield
        return
    ended = threading.Event()

    def repeat() -> None:
        started, wait = time.monotonic(), FIRST_SECONDS
        while not ended.wait(wait):
            console.print(line(), soft_wrap=True, markup=False)
            wait = PLAIN_SECONDS if time.monotonic() - started < LATER_SECONDS else LATER_SECONDS

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _left(remaining: int | float, made: int | float, seconds: float) -> str:
    return f"{timedelta(seconds=round(remaining * seconds / made))} left" if made > 0 else "starting"


class JobProgress:
    """Shows the progress of a job over items (identities), with the steps of the current ones and the time left.

    `items_of` gives the number of items of a unit, for units that another command finishes.
    """

    def __init__(
        self,
        what: str,
        total: int,
        already: int = 0,
        console: Console | None = None,
        items_of: Callable[[int], int] = lambda unit: 0,
    ):
        self.what, self.total, self.already, self.items_of = what, total, already, items_of
        self.console = console or Console(stderr=True, highlight=False)
        # Of open units alone, so that memory does not grow with the job; a unit that begins again counts once.
        self.fractions: dict[int, dict[int, float]] = {}
        self.finished = 0
        self.started = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
        self.overall = self.bars.add_task(what, total=total, completed=already, note="")
        self.items: dict[int, tuple[int | None, TaskID]] = {}

    def __enter__(self) -> "JobProgress":
        if self.console.is_terminal:
            self.bars.start()
        self.plain = _plain_lines(self.console, lambda: f"{self.what}: {self.done:.1f} of {self.total}, {self.note}")
        self.plain.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.plain.__exit__(*error)
        if self.console.is_terminal:
            self.bars.stop()

    def update(self, event: Event) -> None:
        if event.ends_unit:
            self.finished += len(self.fractions.pop(event.unit, ()))
            self.already += self.items_of(event.unit) if event.stage == ELSEWHERE else 0
        if event.item is None:
            return
        self.fractions.setdefault(event.unit, {})[event.item] = event.done / event.total
        if self.console.is_terminal:
            self._update_bars(event)

    @property
    def done(self) -> int | float:
        # Copied at once, because the line is written by another thread.
        return self.already + self.finished + sum(sum(list(unit.values())) for unit in list(self.fractions.values()))

    @property
    def note(self) -> str:
        """The rate and the time left; items that were done before the start do not count towards the rate."""
        seconds, made = time.monotonic() - self.started, self.done - self.already
        if made == 0:
            return "starting"
        return f"{60 * made / seconds:.1f}/min, {_left(self.total - self.already - made, made, seconds)}"

    def _update_bars(self, event: Event) -> None:
        if self.items.get(event.unit, (None,))[0] != event.item:
            self._remove_bar(event.unit)
            self.items[event.unit] = event.item, self.bars.add_task("", total=event.total, note="")
        self.bars.update(
            self.items[event.unit][1],
            description=f"  identity {event.item}",
            completed=event.done,
            total=event.total,
            note=event.stage,
        )
        if event.done == event.total:
            self._remove_bar(event.unit)
        self.bars.update(self.overall, completed=int(self.done), note=self.note)

    def _remove_bar(self, unit: int) -> None:
        if unit in self.items:
            self.bars.remove_task(self.items.pop(unit)[1])
