"""Each loader with an environment, its own copy of the samples, and processes that answer."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loader_peers import samples
from loader_peers.harness import SHARDS, request

HERE = Path(__file__).parent
TIMEOUT = 600
FIXED = ("torch", "torchvision")
"""Packages that a peer's installation may not replace."""
OURS = "spinset"
PEERS = {
    "webdataset": "webdataset==1.0.2",
    "mosaicml": "mosaicml-streaming==0.13.0",
    "litdata": "litdata==0.2.76",
    "energon": "megatron-energon==7.4.1",
    "lancedb": "lancedb==0.40.0",
}
SELECTING = (OURS, "lancedb")
"""Those that read a part of the samples by a selection or a filter."""

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class Tool:
    """A loader, the interpreter that runs it and its samples; or the problem that it has."""

    name: str
    python: str
    folder: Path
    problem: str = ""

    def ask(self, task: str, world: int = 1, **fields: Any) -> Answers:
        """The answers of all ranks, each in a process of its own, or the reason why there is none."""
        if self.problem:
            return [{"failed": self.problem}]
        script = HERE / f"{self.name}_peer.py"
        line = [self.python, str(script), request(task, str(self.folder), **fields)]
        ranks = [started(line, environment) for environment in environments(world)]
        return [answer(rank) for rank in ranks]


def environments(world: int) -> list[dict[str, str]]:
    """The environment that torchrun would set; of it, a single process gets the one thread for torch's operators alone."""
    own = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    if world == 1:
        return [own]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    all_ranks = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    each = ({**all_ranks, "RANK": rank, "LOCAL_RANK": rank} for rank in range(world))
    return [{**own, **{name: str(value) for name, value in more.items()}} for more in each]


def started(line: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The last line of a process, or the last of its complaints."""
    try:
        out, errors = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"no answer in {TIMEOUT} s"}
    if process.returncode:
        return {"failed": (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1][:160]}
    return json.loads(out.strip().splitlines()[-1])


def open_tools(out: Path, identities: int, views: int) -> list[Tool]:
    """Make samples, environments and conversions, as far as they are not there."""
    size = f"{identities}x{views}"
    source = out / f"samples-{size}"
    if not source.exists():
        scratch = source.with_suffix(".tmp")
        samples.write_samples(scratch, identities, views, 256, -(-identities // SHARDS))
        scratch.rename(source)
    return [Tool(OURS, sys.executable, source), *(open_peer(name, out, size, source) for name in PEERS)]


def open_peer(name: str, out: Path, size: str, source: Path) -> Tool:
    python, problem = environment_of(name, PEERS[name], out)
    folder = out / f"{name}-{size}"
    if not folder.exists() and not problem:
        scratch = Tool(name, python, folder.with_suffix(".tmp"))
        (made,) = scratch.ask("convert", state=str(source))
        problem = made.get("failed", "")
        if not problem:
            scratch.folder.rename(folder)
    return Tool(name, python, folder, problem)


def environment_of(name: str, requirement: str, out: Path) -> tuple[str, str]:
    """An interpreter that has a peer beside the packages of this one, and the problem if it does not install."""
    folder = out / "venvs" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        venv.create(folder, clear=True, symlinks=True)
        own = next(folder.glob("lib/python*/site-packages"))
        (own / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{fixed}=={version(fixed).split('+')[0]}\n" for fixed in FIXED))
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints, requirement]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            return str(python), f"does not install: {done.stderr.strip().splitlines()[-1][:160]}"
        ready.touch()
    return str(python), ""
