"""Kills drivers and workers of a generation at random moments, runs the same command again, and compares every byte.

    python benchmarks/long/kills.py [--points 50] [--how part ray]

At every point one process of the command is killed by SIGKILL: the driver, or one of its workers. A killed driver is started
again. The shards must equal those of an undisturbed run, and no identity may have failed.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from manifests.dataset import Dataset
from manifests.storage import Storage
from manifests.verify import verify

SMALL = ("--identities", "12", "--rig", "orbit-4", "--resolution", "32", "--mesh.resolution", "64")
SMALL = (*SMALL, "--identities-per-shard", "2", "--workers", "2")
HOW = {"part": ("--part", "0/1"), "ray": ()}


@dataclass(frozen=True)
class Config:
    """Kill generations and compare what they make."""

    points: int = 50
    """Kills, half of them of the driver."""
    how: tuple[str, ...] = ("part", "ray")
    """Workers as processes of the command (part) or as actors of Ray (ray), by turns."""
    seed: int = 0


def start(out: Path, how: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "spinset", "generate", str(out), *SMALL, *HOW[how]]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def children(pid: int) -> list[int]:
    """The process numbers of all descendants that are workers: spawned by multiprocessing, or actors of Ray."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            try:
                name = Path(f"/proc/{child}/cmdline").read_bytes()
            except FileNotFoundError:
                continue
            if b"spawn_main" in name or b"ray::_Remote" in name:
                found.append(child)
            found += children(child)
    return found


def killed(out: Path, how: str, after: float, driver: bool) -> str:
    """Start a command, kill one of its processes after some seconds, and see it through; says what was hit."""
    job, begun, hit = start(out, how), time.monotonic(), "nothing, it had ended"
    while job.poll() is None and time.monotonic() - begun < after:
        time.sleep(0.02)
    if job.poll() is None:
        workers = children(job.pid)
        target = job.pid if driver or not workers else random.choice(workers)
        try:
            os.kill(target, signal.SIGKILL)
            hit = "the driver" if target == job.pid else "a worker"
        except ProcessLookupError:
            pass  # It ended in this moment, which is as good a point as any.
    code = job.wait()
    for _ in range(3):
        if code == 0:
            return hit
        code = start(out, how).wait()
    raise SystemExit(f"the command still ends with exit code {code} after a kill of {hit} at {after:.2f} s")


def hashes(out: Path) -> dict[str, str]:
    files = [file for file in (out / "shards").iterdir() if not file.name.endswith(".done.json")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main() -> None:
    config = tyro.cli(Config)
    random.seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for how in config.how:
            begun = time.monotonic()
            assert start(Path(folder, how), how).wait() == 0
            seconds[how] = time.monotonic() - begun
        expected, good = hashes(Path(folder, config.how[0])), 0
        for point in range(config.points):
            how, out = config.how[point % len(config.how)], Path(folder, f"point-{point}")
            after = random.uniform(0.1, 0.95) * seconds[how]
            hit = killed(out, how, after, driver=point // len(config.how) % 2 == 0)
            dataset = Dataset(Storage(out))
            whole = hashes(out) == expected and not list(verify(dataset, deep=True))
            good += whole
            print(f"{point + 1}: {how}, {hit} after {after:.1f} s: {'equal' if whole else 'DIFFERENT'}", flush=True)
        print(f"{good} of {config.points} equal")
        sys.exit(good < config.points)


if __name__ == "__main__":
    main()
