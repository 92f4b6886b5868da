"""The section of a run on a page: its losses, and the newest generated views beside the ground truth."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from pages.charts import curve
from pages.page import Section, picture, render


def sections(run: Path) -> list[Section]:
    """The section of a run, made from the files in its folder."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    pictures = sorted((run / "samples").glob("*.png"))
    shown = picture(np.asarray(Image.open(pictures[-1]).convert("RGB"))) if pictures else ""
    config = json.loads((run / "config.json").read_text())
    steps = max(line["samples"] for line in lines) // config["loader"]["batch"]
    losses = {}
    for title, name in (("loss", "loss"), ("validation loss", "validation/loss")):
        if len(points := logged(lines, name)) > 1:
            label = f"{title} from {points[0, 1]:.3f} to {points[-1, 1]:.3f}"
            losses[title] = curve(label, "samples seen", f"{title}, no unit", points)
        elif len(points):
            losses[title] = f"One value: {points[0, 1]:.3f}."
    return [Section("Training", render("train.run", "run.html", losses=losses, shown=shown, steps=steps))]


def logged(lines: list[dict[str, Any]], name: str) -> Float64[np.ndarray, "k 2"]:
    """The finite values of one number of the log, each with the samples seen before it."""
    # A resumed run may have repeated some steps; the last value counts.
    found = {float(line["samples"]): float(line[name]) for line in lines if name in line}
    return np.array(sorted(row for row in found.items() if math.isfinite(row[1]))).reshape(-1, 2)
