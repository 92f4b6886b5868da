"""Compares small DiffPortrait models on held-out heads: python benchmarks/long/portraits.py RUNS --held-out D --strangers D.

RUNS holds what `make portraits64` trained. Every row makes the same views of the same people; the views are every third of a
ring of 72, and the table has their error in front of and behind the head, with its standard error over the people, and the
change at the borders of windows. The first row shows the front in the place of every view. Rows that were measured are kept
beside the runs and not measured again.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float32
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate
from tyro.conf import Positional

from geometry.directions import turned
from infer.config import EvaluateConfig
from infer.evaluation.evaluate import Evaluation, open_evaluation
from infer.evaluation.held_out import HeldOut, choose_people
from infer.evaluation.measure import agreement, measure, true_views
from infer.evaluation.methods import EvaluatedViews, copied_input, sample_views
from infer.portrait import Portrait
from infer.views import ViewSampler
from jobs.progress import step

FRONT = 90.0
"""Largest turn of a view of the front, in degrees."""


@dataclass(frozen=True)
class Config:
    """Compare the small DiffPortrait models."""

    runs: Positional[Path]
    """Folder of the runs 3d, 360, rays and back."""
    held_out: str
    """Dataset of held-out heads on a ring of 72 views."""
    strangers: str
    """Dataset of other heads on the same ring."""
    people: int = 8
    steps: int = 25
    every: int = 3
    """Views of the ring that are passed for one that is made."""
    rows: tuple[str, ...] = ()
    """Only the rows with these names, or whose names contain one of these."""


Proxy = Callable[[HeldOut], Float32[Tensor, "k 3 h w"]]


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    run: str
    """The run whose model makes the views."""
    back: bool = True
    """Whether a generated back is a reference, too."""
    sampler: dict[str, Any] | None = None
    symmetric: bool = False
    proxy: Proxy | None = None


def blurred(held: HeldOut) -> Float32[Tensor, "k 3 h w"]:
    """The true views at an eighth of their size: no method has them, so this bounds what a proxy can add."""
    size = held.rgb.shape[-1]
    return interpolate(interpolate(held.rgb[1:], (size // 8,) * 2, mode="area"), (size,) * 2, mode="bilinear")


def frontal(held: HeldOut) -> Float32[Tensor, "k 3 h w"]:
    """The blurred front in the place of every view."""
    return blurred(replace(held, rgb=held.rgb[[0] * len(held)]))


METHODS = {
    "3D": Method("3d", back=False),
    "3D, symmetric guidance": Method("3d", back=False, symmetric=True),
    "360": Method("360"),
    "360, front alone": Method("360", back=False),
    "360, eta 0": Method("360", sampler={"eta": 0.0}),
    "360, windows overlap by 4": Method("360", sampler={"overlap": 4}),
    "360, from blurred fronts": Method("360", proxy=frontal),
    "360, from blurred true views": Method("360", proxy=blurred),
    "360, rays for strangers": Method("rays"),
}


def main() -> None:
    config = tyro.cli(Config)
    done = config.runs / f"rows-{config.people}-{config.steps}-{config.every}.json"
    methods: dict[str, Method | None] = {"copy of the front": None, **METHODS}
    people = choose_people_of(config)
    for name, method in methods.items():
        if name in known(done) or (config.rows and not any(matches(part, name) for part in config.rows)):
            continue
        evaluation = opened(config, method or METHODS["3D"])
        measured = []
        with step(name, len(people)) as advance:
            for person in people:
                measured.append(row(config, evaluation, method, person))
                advance()
        found = {key: [one[key] for one in measured] for key in measured[0]}
        done.write_text(json.dumps({**known(done), name: found}, indent=1))
    rows = {name: known(done)[name] for name in methods if name in known(done)}
    columns = ("L2", "front L2", "back L2", "SSIM", "front SSIM", "back SSIM", "border")
    table = Table("method", *columns, width=150)
    for name, found in rows.items():
        table.add_row(name, *(cell(found[key]) for key in columns))
    Console(width=150).print(table)
    for one, other in (("3D", "copy of the front"), ("360", "copy of the front"), ("360", "3D")):
        if one in rows and other in rows:
            for key in ("L2", "SSIM", "back L2", "back SSIM"):
                print(f"{one} - {other}, {key}: {cell((np.array(rows[one][key]) - rows[other][key]).tolist())}")


def known(file: Path) -> dict[str, dict[str, list[float]]]:
    """The rows that were measured before, with the figures of each person."""
    return json.loads(file.read_text()) if file.exists() else {}


def matches(part: str, name: str) -> bool:
    """Whether a row is asked for: by its name, or by a part of it that is no name itself."""
    return part == name or (part not in METHODS and part in name)


def choose_people_of(config: Config) -> list[str]:
    """The names of the people."""
    return choose_people(opened(config, METHODS["3D"]).people.names, config.people, 0)


def opened(config: Config, method: Method) -> Evaluation:
    """The evaluation of a method's model, with its settings."""
    back = str(config.runs / "back" / "model") if method.back else ""
    needs_strangers = method.run != "rays" or method.back
    settings = EvaluateConfig(
        str(config.runs / method.run / "views" / "model"),
        config.held_out,
        control=config.strangers if needs_strangers else "",
        back=back,
        steps=config.steps,
        scale=3.0,
        protocol="diffportrait360",
        weights="none",
    )
    evaluation = open_evaluation(settings)
    sampler = replace(evaluation.sampler, config=replace(evaluation.sampler.config, **(method.sampler or {})))
    if method.symmetric:
        network: Any = sampler.model.network
        network.config = replace(network.config, symmetric=True)
    return replace(evaluation, sampler=sampler)


def row(config: Config, evaluation: Evaluation, method: Method | None, name: str) -> dict[str, float]:
    """The figures of a person."""
    held, portrait = read(config, evaluation, name)
    views = copied_input(held) if method is None else made(evaluation, method, held, portrait)
    truth = true_views(evaluation.metrics, held)
    columns = measure(evaluation.metrics, truth, views)["views"]
    front = turned(held.azimuth[1:]) <= FRONT
    sides = {"": np.ones_like(front), "front ": front, "back ": ~front}
    figures = {
        f"{side}{label}": float(np.array(columns[metric])[which].mean())
        for metric, label in (("l2", "L2"), ("ssim", "SSIM"))
        for side, which in sides.items()
    }
    return {**figures, "border": agreement(views, truth).get("border_ratio", float("nan"))}


def read(config: Config, evaluation: Evaluation, name: str) -> tuple[HeldOut, Portrait]:
    """The front of a person and every n-th view of the ring, by azimuth."""
    person = evaluation.people.person(name)
    order = np.argsort(person.azimuth % 360, kind="stable")
    held = person.read(np.concatenate([order[:1], order[:: config.every]]).astype(np.int64))
    preprocess = replace(
        evaluation.preprocess, config=replace(evaluation.preprocess.config, azimuth=0.0, elevation=0.0)
    )
    return held, preprocess(person.photo(int(order[0])))


@torch.inference_mode()
def made(evaluation: Evaluation, method: Method, held: HeldOut, portrait: Portrait) -> EvaluatedViews:
    """The views of a method."""
    sampler: ViewSampler = evaluation.sampler
    control = evaluation.strangers[0] if evaluation.strangers else None
    proxies = method.proxy(held) if method.proxy else None
    return sample_views(sampler, held, portrait.rgb, None, control=control, generator=evaluation.back, proxies=proxies)


def cell(values: list[float]) -> str:
    """The mean, and its standard error over the people."""
    known = np.array(values)[~np.isnan(values)]
    if not len(known):
        return "-"
    return f"{known.mean():.4f} ± {known.std(ddof=1) / len(known) ** 0.5:.4f}" if len(known) > 1 else f"{known[0]:.4f}"


if __name__ == "__main__":
    main()
