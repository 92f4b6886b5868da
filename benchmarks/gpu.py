"""Everything that is meant for a GPU, measured by one command in a fixed time.

    python benchmarks/gpu.py --minutes 8 --out out/gpu     # or: make gpu
    python benchmarks/gpu.py --publish out/gpu/gpu.json    # merge the tables into docs/benchmarks.md

The parts run in order of priority, each within a share of the time. `gpu.json` and `gpu.md` in the output folder are
rewritten after every table, so that a run that is cut off still counts. A part that fails is reported with its error and
the next one runs. `--toy` runs every part at toy sizes on the CPU, which checks the command and measures nothing.
"""

import json
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from gpu_parts.common import Budget, Table
from gpu_parts.goldens import goldens
from gpu_parts.panohead import panohead
from gpu_parts.preset import preset
from gpu_parts.scoring import scoring
from gpu_parts.training import training
from gpu_parts.views import views

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARKS = "<!-- gpu: begin -->", "<!-- gpu: end -->"
"""The lines of docs/benchmarks.md between which the tables of the last published run stand."""

Part = Callable[[Budget], Iterator[Table]]
PARTS: dict[str, tuple[Part, float]] = {
    "goldens": (goldens, 0.15),
    "panohead": (panohead, 0.22),
    "training": (training, 0.28),
    "views": (views, 0.14),
    "scoring": (scoring, 0.06),
    "preset": (preset, 0.15),
}
"""Every part and its share of the whole time; what one leaves over is there for the next."""


@dataclass(frozen=True)
class Config:
    """Measure a GPU."""

    minutes: float = 8.0
    """Time for everything, start-up included."""
    out: str = "out/gpu"
    """Folder for gpu.json, gpu.md and the run of the preset."""
    parts: tuple[str, ...] = tuple(PARTS)
    """The parts to run, in this order."""
    preset: str = "heads64"
    """The training preset that takes the time that is left."""
    toy: bool = False
    """Run toy sizes on the CPU; the figures mean nothing."""
    publish: str = ""
    """Merge this gpu.json into docs/benchmarks.md and measure nothing."""


@dataclass
class Report:
    """The figures so far, and the files they are written to."""

    folder: Path
    machine: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"machine": self.machine, "parts": self.parts}
        (self.folder / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(markdown(document))


def machine() -> dict[str, Any]:
    """The card, the driver and the versions that the figures belong to."""
    facts = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "python": platform.python_version()}
    if not torch.cuda.is_available():
        return {"card": "none (CPU)", "driver": "", **facts}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return {"card": torch.cuda.get_device_name(), "driver": driver, **facts}


def markdown(document: dict[str, Any]) -> str:
    """The tables of a run as markdown, under a line about the machine."""
    about = document["machine"]
    lines = [
        f"{about['card']}, driver {about['driver'] or 'none'}, torch {about['torch']}, Python {about['python']}, "
        f"{about['date']} (`make gpu`)."
    ]
    for name, part in document["parts"].items():
        lines += ["", f"### {name}", ""]
        if part["status"] != "complete":
            lines += [f"{part['status']}: {part['error']}", ""]
        for table in part["tables"]:
            columns = table["columns"]
            lines += [f"{table['title']}:", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(map(str, row))} |" for row in table["rows"]]
            lines += ["", *([table["note"], ""] if table["note"] else [])]
    return "\n".join(lines).rstrip() + "\n"


def publish(file: Path) -> None:
    """Put the tables of a run between the marks of docs/benchmarks.md, or at its end."""
    begin, end = MARKS
    text = f"{begin}\n{markdown(json.loads(file.read_text()))}{end}"
    page = DOCS.read_text()
    if begin in page:
        page = re.sub(f"{begin}.*{end}", lambda _: text, page, flags=re.DOTALL)
    else:
        page = f"{page.rstrip()}\n\n## On a GPU (`make gpu`)\n\n{text}\n"
    DOCS.write_text(page)


def measure(config: Config) -> int:
    """Run the parts; returns the exit code, 1 if a part failed."""
    started = time.monotonic()
    device = "cpu" if config.toy else "cuda"
    report = Report(Path(config.out), machine())
    end, total = started, sum(PARTS[name][1] for name in config.parts)
    for name in config.parts:
        work, share = PARTS[name]
        begun, end = time.monotonic(), end + 60 * config.minutes * share / total
        budget = Budget(device, config.toy, end, report.folder, config.preset)
        tables: dict[str, dict[str, Any]] = {}
        part = report.parts[name] = {"status": "running", "error": "", "seconds": 0.0, "tables": []}
        print(f"\n== {name}: {work.__doc__.splitlines()[0]} (up to {budget.left():.0f} s)", flush=True)
        try:
            for table in work(budget):
                # A table that is yielded again with more rows replaces what it was.
                tables[table.title] = table.as_json()
                part["tables"] = list(tables.values())
                print(table.text(), flush=True)
                report.write()
            part["status"] = "complete"
        except Exception as error:
            part["status"], part["error"] = "failed", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            traceback.print_exc()
        part["seconds"] = round(time.monotonic() - begun, 1)
        if device == "cuda":
            torch.cuda.empty_cache()
        report.write()
        print(f"== {name}: {part['status']} after {part['seconds']} s", flush=True)
    return 1 if any(part["status"] != "complete" for part in report.parts.values()) else 0


def main() -> int:
    config = tyro.cli(Config)
    if unknown := set(config.parts) - set(PARTS):
        print(f"--parts has {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if config.publish:
        publish(Path(config.publish))
        return 0
    if not config.toy and not torch.cuda.is_available():
        print(
            "make gpu: this machine has no CUDA device; --toy runs every part at toy sizes on the CPU", file=sys.stderr
        )
        return 2
    return measure(config)


if __name__ == "__main__":
    sys.exit(main())
