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

REFUSED = {
    "demo": ["--frobnicate"],
    "plan": ["out", "--identities", "0"],
    "generate": ["out", "--identities", "0"],
    "repair": ["{nothing}"],
    "score": ["{nothing}"],
    "select": ["{nothing}", "--policy", "spinmeround"],
    "pack": ["{nothing}", "out", "--selection", "x"],
    "export": ["{nothing}", "out", "--format", "gltf"],
    "latents": ["{nothing}", "--vae", "{nothing}"],
    "train": ["heads63"],
    "views": ["heads64", "{nothing}", "--out", "out"],
    "heads": ["{nothing}", "--out", "out"],
    "evaluate": ["--stages", "3"],
    "average": ["{nothing}", "out"],
    "convert": ["{nothing}", "out"],
    "status": ["{nothing}"],
    "verify": ["{nothing}"],
}
"""Arguments of each command that it refuses."""


def seconds(arguments: list[str]) -> tuple[float, int]:
    """Processor seconds and the exit code of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "spinset", *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.returncode


def main() -> None:
    table = Table("command", "--help, s", "refused, s", "exit code")
    with tempfile.TemporaryDirectory() as folder:
        nothing = str(Path(folder) / "nothing")
        for name in COMMANDS:
            shown, _ = seconds([name, *(["small"] if name == "train" else []), "--help"])
            refused, code = seconds([name, *(word.format(nothing=nothing) for word in REFUSED[name])])
            table.add_row(name, f"{shown:.2f}", f"{refused:.2f}", str(code))
    Console().print(table)


if __name__ == "__main__":
    main()
