"""Shows how far a job is: live bars on a terminal, a plain line every few seconds without one."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jobs.pool import Event

PLAIN_SECONDS = 5.0


class JobProgress:
    """Counts items (identities) and the steps within them, and says when the job will end."""

    def __init__(self, what: str, total: int, already: int = 0, console: Console | None = None):
        self.what, self.total, self.already = what, total, already
        self.console = console or Console(stderr=True, highlight=False)
        self.fractions: dict[int, float] = {}
        self.started = self.printed = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
        self.overall = self.bars.add_task(what, total=total, completed=already, note="")
        self.items: dict[int, tuple[int | None, TaskID]] = {}

    def __enter__(self) -> "JobProgress":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def update(self, event: Event) -> None:
        if event.item is None:
            return
        self.fractions[event.item] = event.done / event.total
        if self.console.is_terminal:
            self._update_bars(event)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.console.print(f"{self.what}: {self.done:.1f} of {self.total}, {self.note}", soft_wrap=True)

    @property
    def done(self) -> float:
        return self.already + sum(self.fractions.values())

    @property
    def note(self) -> str:
        """Rate and time left; identities found done at the start do not count towards the rate."""
        seconds, made = time.monotonic() - self.started, sum(self.fractions.values())
        if made == 0:
            return "starting"
        left = timedelta(seconds=round((self.total - self.done) * seconds / made))
        return f"{60 * made / seconds:.1f}/min, {left} left"

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
