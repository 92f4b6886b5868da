"""Progress counts steps within items, says plain lines without a terminal, and ignores what was done before."""

import io

from rich.console import Console

from jobs import progress
from jobs.pool import Event
from jobs.progress import JobProgress


def test_plain_lines(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    out = io.StringIO()
    with JobProgress("generate", total=10, already=4, console=Console(file=out)) as shown:
        shown.update(Event(2, 4, "views", 5, 10))
        shown.update(Event(3, 6, "views", 10, 10))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("generate: 4.5 of 10, ") and lines[0].endswith(" left")
    assert lines[1].startswith("generate: 5.5 of 10, ")


def test_bars_come_and_go_with_their_items():
    console = Console(file=io.StringIO(), force_terminal=True)
    with JobProgress("generate", total=3, console=console) as shown:
        shown.update(Event(0, 0, "views", 1, 2))
        shown.update(Event(1, 2, "head", 0, 2))
        assert {item for item, _ in shown.items.values()} == {0, 2}
        shown.update(Event(0, 0, "done", 2, 2))
        shown.update(Event(0, 1, "head", 0, 2))
        assert shown.items[0][0] == 1
        assert shown.done == 1
