"""Progress counts steps within items, prints plain lines without a terminal, and ignores what was done before."""

import io
import os
import pty
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from jobs import progress
from jobs.progress import JobProgress, step
from jobs.units import Event

STEP = """
import sys
from jobs import progress
progress.FIRST_SECONDS = progress.PLAIN_SECONDS = 0.01
with progress.step("sampling views", 4) as advance:
    advance()
    sys.stdin.readline()
"""


class Lines(io.StringIO):
    """A stream that lets a test wait until a line has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        if "\n" in text:
            self.written.set()
        return count


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.01)


def test_a_job_prints_plain_lines_also_between_its_events(often):
    out = Lines()
    with JobProgress("generate", total=10, already=4, console=Console(file=out, width=200)) as shown:
        assert out.written.wait(20)
        assert out.getvalue().startswith("generate: 4.0 of 10, starting\n")
        shown.update(Event(2, 4, "views", 5, 10))
        out.written.clear()
        assert out.written.wait(20)
        out.written.clear()
        assert out.written.wait(20)
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("generate: 4.5 of 10, ") and last.endswith(" left")


def test_a_step_names_itself_with_its_share_and_the_remaining_time(often, monkeypatch):
    out = Lines()
    monkeypatch.setattr(sys, "stderr", out)
    with step("sampling views", 8, already=2) as advance:
        assert out.written.wait(20)
        assert out.getvalue().startswith("sampling views: 25%, starting\n")
        advance(2)
        for _ in range(2):
            out.written.clear()
            assert out.written.wait(20)
    assert out.getvalue().splitlines()[-1].startswith("sampling views: 50%, 0:0")
    assert not [t for t in threading.enumerate() if t.name == "progress"]


def test_a_step_without_a_total_shows_how_long_it_runs(often, monkeypatch):
    out = Lines()
    monkeypatch.setattr(sys, "stderr", out)
    with step("loading the model"):
        assert out.written.wait(20)
    assert out.getvalue().startswith("loading the model: running for 0:00:0")


def test_a_quick_step_prints_nothing(capsys):
    with step("verify", 1) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_a_pipe_gets_plain_lines_and_a_terminal_a_bar():
    command = [sys.executable, "-c", STEP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as piped:
        assert piped.stderr is not None
        while (line := piped.stderr.readline()) == "sampling views: 0%, starting\n":
            pass  # before the first step, on a busy machine
        assert line == "sampling views: 25%, 0:00:00 left\n"
        piped.communicate("\n")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=theirs, env=environment) as on_terminal:
        os.close(theirs)
        seen = b""
        while b"25%" not in seen:
            seen += os.read(ours, 4096)
        on_terminal.communicate(b"\n")
    os.close(ours)
    assert b"sampling views" in seen and b"\x1b[" in seen


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
