"""Nothing is imported from the caller's folder: a user may well have a train.py or a filters.py of their own there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = (*(p.parent.name for p in ROOT.glob("*/__init__.py")), "demo")
SMALL = ["--identities", "1", "--rig", "orbit-2", "--resolution", "16", "--mesh.resolution", "64"]


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Path:
    """A working directory with modules of these names; importing one of them leaves a file behind."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("open(__file__ + '.imported', 'w').close()\nraise SystemExit(77)\n")
    # As an installed spinset: found on the path, wherever the command is started.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True)


def untouched(folder: Path) -> bool:
    return not list(folder.glob("*.imported"))


@pytest.mark.parametrize("command", ["plan", "score", "select", "train", "views", "export", "status"])
def test_python_m(hostile, command):
    done = run("-m", "spinset", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: spinset {command}" in done.stdout
    assert untouched(hostile)


def test_torchrun(hostile):
    done = run("-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "spinset", "train", "small", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: spinset train small" in done.stdout
    assert untouched(hostile)


def test_ray_workers(hostile):
    done = run("-m", "spinset", "generate", "heads", *SMALL, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert (hostile / "heads" / "shards" / "heads-000000.done.json").exists()
    assert untouched(hostile)


def test_a_script_that_is_named_like_a_package(hostile):
    """The documented way: `python -P` leaves the script's own folder off the path."""
    script = hostile / "train.py"
    script.write_text("from train.data.loader import open_loader\nprint(open_loader.__name__)\n")
    done = run("-P", str(script))
    assert (done.stdout, done.returncode) == ("open_loader\n", 0), done.stderr
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.stdout == "open_loader\n", done.stderr
