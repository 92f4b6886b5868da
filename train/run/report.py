"""The section of a run on a page: its losses, and the newest generated views beside the ground truth."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pages.page import Section, picture, render, round_numbers


@dataclass(frozen=True)
class Curve:
    """One logged number over the samples seen; points and ticks are in percent of the axes, from the lower left."""

    points: list[tuple[float, float]]
    samples: list[tuple[float, str]]
    values: list[tuple[float, str]]
    first: float
    last: float


def sections(run: Path) -> list[Section]:
    """The section of a run, made from the files in its folder."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    pictures = sorted((run / "samples").glob("*.png"))
    shown = picture(np.asarray(Image.open(pictures[-1]).convert("RGB"))) if pictures else ""
    config = json.loads((run / "config.json").read_text())
    numbers = {"loss": curve(lines, "loss"), "validation loss": curve(lines, "validation/loss")}
    steps = max(line["samples"] for line in lines) // config["loader"]["batch"]
    curves = {name: found for name, found in numbers.items() if found}
    return [Section("Training", render("train.run", "run.html", curves=curves, shown=shown, steps=steps))]


def curve(lines: list[dict[str, Any]], name: str) -> Curve | None:
    """The curve of one number of the log, from its finite values; None if it has none."""
    # A resumed run may have repeated some steps; the last value counts.
    logged = {float(line["samples"]): float(line[name]) for line in lines if name in line}
    found = sorted((samples, value) for samples, value in logged.items() if math.isfinite(value))
    if not found:
        return None
    x_ticks = round_numbers(0.0, found[-1][0])
    y_ticks = round_numbers(min(0.0, *(value for _, value in found)), max(value for _, value in found), most=4)

    def percent(x: float, ticks: list[float]) -> float:
        return round(100 * (x - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    return Curve(
        [(percent(samples, x_ticks), percent(value, y_ticks)) for samples, value in found],
        [(percent(x, x_ticks), f"{x:,.0f}") for x in x_ticks if x.is_integer()],
        [(percent(y, y_ticks), f"{y:g}") for y in y_ticks],
        found[0][1],
        found[-1][1],
    )
