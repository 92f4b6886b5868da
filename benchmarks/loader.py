"""Our loader beside webdataset, MosaicML streaming, litdata, energon and LanceDB, on the same samples in one run.

    python benchmarks/loader.py [--out DIR] [--quick]

makes the samples, each peer's own format of them and its environment (which shares this one's packages and installs what
is missing) in DIR once, then takes every measurement in a process of its own, tool after tool in each round. Prints the
tables of docs/benchmarks.md and writes DIR/results.json. --quick only shows that everything works.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from math import comb
from pathlib import Path
from typing import Any

import tyro
from loader_peers.samples import HALF
from loader_peers.tables import excuse, report
from loader_peers.tools import HERE, OURS, SELECTING, Answers, Tool, answer, open_tools, started

BATCH, RANKS = 64, 4
MEASURES: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential": ("stream", {"shuffle": False}),
    "shuffled": ("stream", {}),
    "inline": ("load", {"workers": 0}),
    "workers": ("load", {}),
    "decoded": ("load", {"decode": "opencv"}),
    "decoded_inline": ("load", {"decode": "opencv", "workers": 0}),
    "decoded_own": ("load", {"decode": "own"}),
    "random": ("random", {}),
    "first": ("first", {}),
}


@dataclass(frozen=True)
class Config:
    """Measure loaders side by side."""

    out: Path = Path("out/loader")
    """Where samples, environments and results are kept; about 3 GB."""
    quick: bool = False
    """A fifth of the samples, one round."""
    repeats: int = 5
    """Rounds that count, after one that does not."""

    @property
    def size(self) -> tuple[int, int]:
        """Identities, and views of each."""
        return 48, 25 if self.quick else 125

    @property
    def rounds(self) -> Sequence[int]:
        return [1] if self.quick else range(self.repeats + 1)


@dataclass(frozen=True)
class Resume:
    """A run that stops in the middle of its epoch and goes on with other ranks or workers."""

    collate: str = "dict"
    batch: int = BATCH
    ranks: tuple[int, int] = (1, 1)
    workers: tuple[int, int] = (2, 2)
    selection: str = ""


RESUMES = {
    "dict": Resume(),
    "list": Resume("list"),
    "tuple": Resume("tuple"),
    "workers 2 to 3": Resume(workers=(2, 3)),
    "the same of 48": Resume(batch=48, workers=(2, 3)),
    # Ranks times workers stay what they were, which energon needs and the others do not mind.
    "ranks 1 to 2": Resume(ranks=(1, 2), workers=(2, 1)),
    "ranks 4 to 3": Resume(batch=48, ranks=(4, 3), workers=(3, 4)),
    "selection": Resume(selection=HALF),
}


def verify(tools: list[Tool]) -> dict[str, str]:
    """Whether each tool hands out the very bytes that were stored; also brings all files into the page cache."""
    found = {tool.name: tool.ask("verify")[0] for tool in tools}
    truth = found[OURS]
    return {
        name: given.get("failed") or ("" if given["check"] == truth["check"] else "it hands out other bytes")
        for name, given in found.items()
    }


def measure(rounds: Sequence[int], tools: list[Tool]) -> dict[str, dict[str, Answers]]:
    """By measure and tool, an answer per round."""
    found: dict[str, dict[str, Answers]] = {name: {tool.name: [] for tool in tools} for name in MEASURES}
    for number in rounds:
        for name, (task, fields) in MEASURES.items():
            for tool in tools:
                (given,) = tool.ask(task, seed=number, **fields)
                if number:
                    found[name][tool.name].append(given)
        print(f"round {number} of {rounds[-1]}", file=sys.stderr)
    return found


def resume(tool: Tool, case: Resume, size: tuple[int, int], state: Path) -> dict[str, Any]:
    """Samples that an interrupted epoch repeats or lacks, and steps that have other samples than without the interruption."""
    if case.selection and tool.name not in SELECTING:
        return {"not_offered": "no selections"}
    identities, views = size
    total = identities * (-(-views // 2) if case.selection else views)
    stop = round(total / case.batch / 2) * case.batch
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    # Energon's guide to reproducible scaling: the batch is micro-batch times ranks times workers.
    micro = case.batch // (case.ranks[0] * case.workers[0]) if case.ranks != (1, 1) else 0
    fields = {"collate": case.collate, "batch": case.batch, "micro": micro, "selection": case.selection, "stop": stop}
    saved, resumed, whole = (
        tool.ask(task, case.ranks[which], workers=case.workers[which], state=str(state), **fields)
        for task, which in (("save", 0), ("resume", 1), ("uninterrupted", 0))
    )
    for given in (*saved, *resumed, *whole):
        if excuse([given]):
            return given
    keys = [key for given in (*saved, *resumed) for own in given["keys"] for key in own]
    return {
        "repeated": len(keys) - len(set(keys)),
        "missing": total - len(set(keys)),
        "other": sum(a != b for a, b in zip_longest(steps(saved, case) + steps(resumed, case), steps(whole, case))),
        "seconds": max(given["seconds"] for given in resumed),
        "state": max(given["state"] for given in saved),
    }


def steps(answers: Answers, case: Resume) -> list[set[str]]:
    """The samples of each step, of all ranks together."""
    own = case.batch // len(answers)
    ranks = [[key for batch in given["keys"] for key in batch] for given in answers]
    longest = max(map(len, ranks))
    return [{key for keys in ranks for key in keys[at : at + own]} for at in range(0, longest, own)]


def distinct(answers: Answers) -> float | str:
    """The mean number of identities in a full batch."""
    if why := excuse(answers):
        return why
    full = [batch for given in answers for batch in given["keys"] if len(batch) == BATCH]
    return sum(len({key.split("_")[0] for key in batch}) for batch in full) / len(full)


def ideal(identities: int, views: int) -> float:
    """The number to expect in a batch that is drawn without replacement."""
    total = identities * views
    return identities * (1 - comb(total - views, BATCH) / comb(total, BATCH))


def ranks(tool: Tool) -> str:
    """How many samples each rank gets of an epoch."""
    answers = tool.ask("load", RANKS, workers=1)
    return excuse(answers) or " / ".join(f"{sum(map(len, given['keys'])):,}" for given in answers)


def own(config: Config) -> dict[str, Any]:
    """Measurements of spinset's loader alone."""
    script, out = str(HERE / "own.py"), str(config.out.resolve())
    identities = 1000 if config.quick else 10_000
    tasks = {"multiview": ["multiview", out], "large": ["large", out, str(identities)]}
    found = {name: answer(started([sys.executable, script, *line])) for name, line in tasks.items()}
    for name, given in found.items():
        if "failed" in given:
            raise RuntimeError(f"{name}: {given['failed']}")
    return found


def machine() -> str:
    about = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in about if line.startswith("model name"))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def main() -> None:
    config = tyro.cli(Config)
    out = config.out.resolve()
    tools = open_tools(out, *config.size)
    problems = verify(tools)
    measured = measure(config.rounds, tools)
    results = {
        "command": "python benchmarks/loader.py" + " --quick" * config.quick,
        "machine": machine(),
        "size": config.size,
        "repeats": len(config.rounds[-config.repeats :]),
        "versions": {
            tool.name: next((a["version"] for a in measured["workers"][tool.name] if "version" in a), "-")
            for tool in tools
        },
        "problems": problems,
        "distinct": {name: distinct(answers) for name, answers in measured["workers"].items()},
        "ideal": ideal(*config.size),
        "ranks": {tool.name: ranks(tool) for tool in tools},
        "resumes": {
            tool.name: {name: resume(tool, case, config.size, out / "state") for name, case in RESUMES.items()}
            for tool in tools
        },
        "own": own(config),
        "measures": without_keys(measured),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    report(results)


def without_keys(measured: dict[str, dict[str, Answers]]) -> dict[str, dict[str, Answers]]:
    """The figures alone."""
    return {
        name: {
            tool: [{field: value for field, value in given.items() if field != "keys"} for given in answers]
            for tool, answers in by_tool.items()
        }
        for name, by_tool in measured.items()
    }


if __name__ == "__main__":
    main()
