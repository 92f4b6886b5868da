"""`make gpu` is ready at any time: every part runs at toy sizes on the CPU, and its figures fill the tables."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, str(ROOT / "benchmarks" / "gpu.py"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def gpu(*options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("gpu")
    done = gpu("--toy", "--minutes", "60", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "gpu.md").read_text().count("### ") == 6
    return json.loads((out / "gpu.json").read_text())


@pytest.mark.parametrize(
    ("part", "titles"),
    [
        ("goldens", ["Tests on the device"]),
        ("panohead", ["Seconds of one identity", "Seconds of the stages", "Whole identities"]),
        ("training", ["Training step in bf16"]),
        ("views", ["Decoding one view", "Seconds per made view"]),
        ("scoring", ["Scoring", "Decoding pictures", "What a scene"]),
        ("preset", ["Training heads64"]),
    ],
)
def test_every_part_yields_its_tables(document, part, titles):
    found = document["parts"][part]
    assert found["status"] == "complete"
    for title in titles:
        (table,) = [table for table in found["tables"] if table["title"].startswith(title)]
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_the_machine_is_named(document):
    assert document["machine"]["card"]
    assert document["machine"]["torch"] == torch.__version__


def test_tables_are_published_once(document, tmp_path):
    """A second run takes the place of the first one's tables, and the rest of the page stays."""
    for folder in ("benchmarks", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("images", "__pycache__"))
    page, before = tmp_path / "docs" / "benchmarks.md", (ROOT / "docs" / "benchmarks.md").read_text()
    figures = tmp_path / "gpu.json"
    for card in ("First card", "Second card"):
        figures.write_text(json.dumps({**document, "machine": {**document["machine"], "card": card}}))
        command = [sys.executable, str(tmp_path / "benchmarks" / "gpu.py"), "--publish", str(figures)]
        subprocess.run(command, env=ENVIRONMENT, check=True)
    text = page.read_text()
    assert "Second card" in text
    assert "First card" not in text
    assert text.startswith(before.partition("\n## On a GPU")[0].rstrip())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_it_exits_in_one_line():
    done = gpu()
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "this machine has no CUDA device" in done.stderr


def test_an_unknown_part_is_refused():
    done = gpu("--toy", "--parts", "panohed")
    assert done.returncode == 2
    assert done.stderr == "--parts has panohed; the parts are goldens, panohead, training, views, scoring, preset\n"
