"""Processor time of every command's help and of a refusal, in a process of its own.

    python benchmarks/startup.py

Processor time (user and system, of the process and its children), so that other work on the machine does not count.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spinset import COMMANDS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from test_cli_startup import REFUSED  # noqa: E402


def seconds(arguments: list[str], folder: str) -> tuple[float, int]:
    """Processor seconds and the exit code of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "spinset.py"), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.returncode


def main() -> None:
    table = Table("command", "--help, s", "refused, s", "exit code")
    with tempfile.TemporaryDirectory() as folder:
        for name in COMMANDS:
            shown, _ = seconds([name, *(["small"] if name == "train" else []), "--help"], folder)
            refused, code = seconds([name, *REFUSED[name]], folder)
            table.add_row(name, f"{shown:.2f}", f"{refused:.2f}", str(code))
    Console().print(table)


if __name__ == "__main__":
    main()
