"""The report of an evaluation: results.json, results.md with the papers' tables, and failures.html with the worst people."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from infer.evaluation.held_out import HeldOut
from infer.evaluation.methods import EvaluatedViews
from infer.evaluation.protocols import EvaluationProtocol, PaperTable, better
from infer.evaluation.results import Result, Row, measured, worst
from infer.metrics.figures import Figure
from manifests.pictures import encode_picture
from pages.page import render
from train.batch import to_bytes

TILE, COLUMNS = 96, 8
"""Pixels of a view in the gallery, and the number of views of a person in it."""
WORST_PEOPLE = 3
"""People that are listed as the worst of each metric."""
PICTURES = "pictures"
DIFFERENCE = (
    "The numbers of the papers are their own: of other people, other pictures, other weights and often other definitions. "
    "They tell the order of magnitude; methods are compared by measuring them on the same people."
)


class TableRow(NamedTuple):
    """One row of a table as text."""

    name: str
    cells: list[str]
    is_measured: bool = False
    """Whether the row is of this evaluation, and not of a paper."""


@dataclass(frozen=True)
class EvaluationReport:
    """The results of all people, and the files that are written of them."""

    title: str
    about: Mapping[str, Any]
    """The model or the folders that were measured, and the settings."""
    protocol: EvaluationProtocol | None
    methods: Mapping[str, str]
    """The name of each method in the report, by its key; the measured model comes first."""
    rows: Sequence[Row]
    results: Mapping[str, Sequence[Result]]
    notes: Sequence[str] = field(default=())

    @property
    def lead(self) -> str:
        what = "people" if self.protocol else "pictures"
        return f"{len(self.rows)} {what}. {self.protocol.setting if self.protocol else ''}".strip()

    @cached_property
    def figures(self) -> dict[str, dict[str, Figure]]:
        """The figures by method, then by metric."""
        return {m: {r.figure.name: r.figure for r in found} for m, found in self.results.items()}

    def table_lines(self, table: PaperTable) -> list[TableRow]:
        """The rows of a paper, then those of the measured methods."""
        of_paper = [TableRow(name, [_cell(n) for n in numbers]) for name, numbers in table.rows]
        metrics = [metric for _, metric in table.columns]
        of_methods = [
            TableRow(label, [_cell(self.figures[m][x].value if x in self.figures[m] else None) for x in metrics], True)
            for m, label in self.methods.items()
        ]
        return of_paper + of_methods

    def measured_rows(self) -> list[TableRow]:
        """Each metric that has a number, with the standard error over people and the count that it is a mean of."""
        names = [r.figure.name for r in self.results[next(iter(self.methods))]]
        by_name = {m: {r.figure.name: r for r in found} for m, found in self.results.items()}
        lines = [
            TableRow(f"{name} ({better(name)})", [_full(by_name[m].get(name)) for m in self.methods]) for name in names
        ]
        return [line for line in lines if any(cell != "-" for cell in line.cells)]

    def missing_rows(self) -> list[TableRow]:
        """The metrics without a number, grouped by the reason."""
        reasons: dict[str, list[str]] = {}
        for name, figure in self.figures[next(iter(self.methods))].items():
            if figure.value is None:
                reasons.setdefault(figure.reason, []).append(name)
        return [TableRow(", ".join(names), [reason]) for reason, names in reasons.items()]

    def differences(self) -> list[str]:
        """Sentences on the differences between these numbers and the papers'."""
        return [DIFFERENCE, *self.protocol.choices, *self.notes] if self.protocol else list(self.notes)

    def write(self, folder: Path) -> None:
        """Write the three files."""
        protocol = self.protocol and {"name": self.protocol.name, "setting": self.protocol.setting}
        tables = [asdict(table) for table in self.protocol.tables] if self.protocol else []
        document = {
            "title": self.title,
            **self.about,
            "protocol": protocol,
            "results": {m: [r.as_json() for r in found] for m, found in self.results.items()},
            "methods": dict(self.methods),
            "papers": tables,
            "differences": self.differences(),
        }
        _write(folder / "results.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
        _write(folder / "results.md", self._markdown())
        _write(folder / "failures.html", self._page(folder))

    def _markdown(self) -> str:
        out = [f"# {self.title}", "", self.lead, ""]
        for table in self.protocol.tables if self.protocol else ():
            out += [f"## {table.title} ({table.source})", ""]
            out += _pipes(["", *(h for h, _ in table.columns)], self.table_lines(table))
        out += [
            "## All measured metrics",
            "",
            "Mean, standard error over people, and the count of views, pairs or people.",
            "",
        ]
        out += _pipes(["metric (better)", *self.methods.values()], self.measured_rows())
        if missing := self.missing_rows():
            out += ["## Not measured", "", *(f"* {line.name}: {line.cells[0]}" for line in missing), ""]
        if differences := self.differences():
            out += ["## Differences to the paper", "", *(f"* {sentence}" for sentence in differences), ""]
        return "\n".join(out)

    def _page(self, folder: Path) -> str:
        method = next(iter(self.methods))
        lists = {x: worst(self.rows, method, x, WORST_PEOPLE) for x in measured(self.rows, method)}
        names = list(dict.fromkeys(row["name"] for found in lists.values() for row, _ in found))
        cards = {name: file for name in names if (file := picture_file(folder, name)).is_file()}
        return render(
            "infer.evaluation",
            "evaluation.html",
            report=self,
            lists={x: [(row["name"], _cell(value)) for row, value in found] for x, found in lists.items()},
            better=better,
            cards={name: _data(file) for name, file in cards.items()},
            captions={name: next(row for row in self.rows if row["name"] == name).get("caption", "") for name in cards},
        )


def picture_file(folder: Path, name: str) -> Path:
    """The file with the gallery of a person."""
    return folder / PICTURES / f"{name.replace('/', '__')}.png"


def strip(held: HeldOut, made: EvaluatedViews, nearest: EvaluatedViews | None) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of the true views (the input first), of the sampled views, of both normals, and of the nearest training head."""
    count = min(len(held) - 1, COLUMNS - 1)
    grey = torch.zeros_like(held.rgb[:1])
    rows = [held.rgb[: count + 1], torch.cat([grey, made.rgb[:count]])]
    if made.normal is not None:
        if held.normal is not None:
            rows.append(held.normal[: count + 1])
        rows.append(torch.cat([grey, made.normal[:count]]))
    if nearest is not None:
        rows.append(torch.cat([grey, nearest.rgb[:count]]))
    return grid(rows)


def grid(rows: Sequence[Float32[Tensor, "n 3 h w"]]) -> UInt8[np.ndarray, "y x 3"]:
    """Rows of pictures in [-1, 1] as one picture, each reduced to a tile; smaller ones keep their size."""
    tiles = []
    for row in rows:
        height, width = row.shape[-2:]
        scale = min(1.0, TILE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = interpolate(row, size, mode="bilinear", antialias=True) if scale < 1 else row
        tiles.append(np.concatenate(list(to_bytes(small.clamp(-1, 1))), 1))
    return np.concatenate(tiles, 0)


def save_strip(folder: Path, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write a person's picture for the gallery."""
    (folder / PICTURES).mkdir(exist_ok=True)
    picture_file(folder, name).write_bytes(encode_picture(pixels))


def _data(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _full(result: Result | None) -> str:
    if result is None or result.figure.value is None:
        return "-"
    sure = f" +- {result.stderr:.2g}" if result.stderr is not None else ""
    return f"{result.figure.value:.4g}{sure} ({result.figure.count})"


def _pipes(headings: Sequence[str], lines: Sequence[TableRow]) -> list[str]:
    rows = [[f"**{line.name}**" if line.is_measured else line.name, *line.cells] for line in lines]
    body = [f"| {' | '.join(row)} |" for row in (list(headings), ["---"] * len(headings), *rows)]
    return [*body, ""]


def _write(file: Path, text: str) -> None:
    scratch = file.with_name(f".{file.name}.part")
    scratch.write_text(text)
    scratch.replace(file)
