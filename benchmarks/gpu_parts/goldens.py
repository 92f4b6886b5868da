"""The tests marked `gpu`: goldens, autocast, fused AdamW, pinned memory, FSDP2, ONNX and device faults."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from gpu_parts.common import Budget, Table

ROOT = Path(__file__).parents[2]


def goldens(budget: Budget) -> Iterator[Table]:
    """The tests marked gpu, and what they measured."""
    report = budget.folder / "gpu-tests.xml"
    budget.folder.mkdir(parents=True, exist_ok=True)
    # The options of pyproject.toml ask for plugins that a bare machine may not have.
    settings = ("addopts=--import-mode=importlib", "filterwarnings=", "junit_family=xunit1")
    options = [word for setting in settings for word in ("-o", setting)] + ["-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *options, "tests/gpu", f"--junitxml={report.absolute()}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(budget.left(), 60))
    if not report.is_file():
        raise RuntimeError(f"pytest wrote no report: {done.stdout[-500:]}{done.stderr[-500:]}")
    table = Table("Tests on the device", ("test", "result", "s", "measured"))
    for case in ElementTree.parse(report).iter("testcase"):
        found = {child.tag: child for child in case}
        result = next((tag for tag in ("failure", "error", "skipped") if tag in found), "passed")
        measured = [f"{p.get('name')} {p.get('value')}" for p in case.iter("property")]
        if result != "passed":
            measured.append((found[result].get("message") or "").splitlines()[0][:160])
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        yield table.add(name, result, float(case.get("time", 0)), "; ".join(measured))
    if any(row[1] in ("failure", "error") for row in table.rows):
        print(done.stdout[-6000:])
        raise AssertionError("tests failed on this device; the table names them")
