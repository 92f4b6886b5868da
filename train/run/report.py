"""What a person sees of a run on a page: its loss, and the last views it drew beside the truth."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.page import Section, picture, render


@dataclass(frozen=True)
class Curve:
    """One line of numbers over the samples seen, in percent of its axes."""

    points: str
    first: float
    last: float
    highest: float
    samples: int


def sections(run: Path) -> list[Section]:
    """The section of a run, from the files it left."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    pictures = sorted((run / "samples").glob("*.png"))
    shown = picture(np.asarray(Image.open(pictures[-1]).convert("RGB"))) if pictures else ""
    config = json.loads((run / "config.json").read_text())
    numbers = {"loss": curve(lines, "loss"), "validation loss": curve(lines, "validation/loss")}
    steps = max(line["samples"] for line in lines) // config["loader"]["batch"]
    curves = {name: found for name, found in numbers.items() if found}
    return [Section("Training", render("train.run", "run.html", curves=curves, shown=shown, steps=steps))]


def curve(lines: list[dict[str, float]], name: str) -> Curve | None:
    """A number of the log; None if it holds none."""
    # A resumed run may have taken some steps twice; the last time counts.
    found = sorted({int(line["samples"]): line[name] for line in lines if name in line}.items())
    if not found:
        return None
    last, highest = found[-1][0], max(value for _, value in found)
    points = " ".join(f"{100 * seen / last:.2f},{100 - 100 * value / highest:.2f}" for seen, value in found)
    return Curve(points, found[0][1], found[-1][1], highest, last)
