"""The protocols of three papers: which people and views are measured, how views are sampled, and the papers' own numbers.

They are data (protocols.json). Numbers of papers belong to other people, pictures and weights; `choices` states what a paper
leaves open and what is done here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infer.config import ProtocolName


@dataclass(frozen=True)
class Targets:
    """A number of target views drawn at random from those an identity has, or all of them if it has fewer."""

    count: int
    beyond: float = -1.0
    """Lower bound of the angle to the front, in degrees, excluded."""
    within: float = 180.0
    """Upper bound of the angle to the front, in degrees, included."""


@dataclass(frozen=True)
class PaperTable:
    """A table as a paper prints it; numbers that it does not print are None."""

    title: str
    source: str
    columns: tuple[tuple[str, str], ...]
    """The heading of each column and the name of the metric that it holds here."""
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    """The methods and their numbers, one per column."""

    def __post_init__(self) -> None:
        assert all(len(numbers) == len(self.columns) for _, numbers in self.rows), self.title


@dataclass(frozen=True)
class EvaluationProtocol:
    """How one paper measures."""

    name: ProtocolName
    identities: int
    """The number of held-out people, or all of them if there are fewer."""
    input_turn: float
    """Largest angle to the front (degrees) of the input view, which is drawn at random among those views; 0 takes the most
    frontal view."""
    targets: tuple[Targets, ...]
    steps: int
    """Sampling steps."""
    scale: float
    """Guidance scale."""
    setting: str
    """The paper's own setting in words."""
    choices: tuple[str, ...]
    """Sentences on what the paper leaves open or did otherwise, and what is done here."""
    tables: tuple[PaperTable, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the tables, each once."""
        return tuple(dict.fromkeys(metric for table in self.tables for _, metric in table.columns))


def _read(name: Any, fields: dict[str, Any]) -> EvaluationProtocol:
    targets = tuple(Targets(**target) for target in fields.pop("targets"))
    tables = tuple(
        PaperTable(
            table["title"],
            table["source"],
            tuple((heading, metric) for heading, metric in table["columns"]),
            tuple((method, tuple(numbers)) for method, numbers in table["rows"]),
        )
        for table in fields.pop("tables")
    )
    return EvaluationProtocol(name, targets=targets, tables=tables, choices=tuple(fields.pop("choices")), **fields)


PROTOCOLS: dict[str, EvaluationProtocol] = {
    name: _read(name, fields)
    for name, fields in json.loads(Path(__file__).with_suffix(".json").read_text("utf-8")).items()
}

LOWER = frozenset(
    {"l2", "lpips_alex", "lpips_vgg", "dists", "reid_distance", "normal_error", "fid"}
    | {"epipolar_median", "hull_spread", "hull_ratio", "border_ratio"}
)
"""Metrics whose lower values are better, without the endings _front and _back."""


def better(metric: str) -> Literal["lower", "higher"]:
    """Whether lower or higher values of a metric are better."""
    return "lower" if metric.removesuffix("_front").removesuffix("_back") in LOWER else "higher"
