"""How far an evaluation is: a bar on a terminal, a plain line every few seconds without one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress

PLAIN_SECONDS = 5.0


@contextmanager
def people_shown(what: str, total: int, already: int) -> Iterator[Callable[[], None]]:
    """Progress over people; call what it gives after each."""
    console = Console(stderr=True, highlight=False)
    started = printed = time.monotonic()
    done = 0
    with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=already)

        def step() -> None:
            nonlocal done, printed
            done += 1
            bar.update(task, completed=already + done)
            now = time.monotonic()
            if not console.is_terminal and (now - printed >= PLAIN_SECONDS or already + done == total):
                printed = now
                left = timedelta(seconds=round((total - already - done) * (now - started) / done))
                console.print(f"{what}: {already + done} of {total}, {left} left", soft_wrap=True)

        yield step
