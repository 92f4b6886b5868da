"""The sections of a selection on a page: counts of each rule, its scores and limits, the worst and the borderline heads."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from filters.policy import Heads, Tally
from filters.rules import Rule, Softmax, parse_policy
from filters.select import JudgedDataset, judge_dataset
from filters.summary import rule_counts
from filters.thumbnails import Thumbnails, damaged_tile, thumbnail
from geometry.directions import wrapped
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.scores import VIEW, WHOLE, Scores
from manifests.selection import read_selection
from pages.page import Section, picture, render, round_numbers

BINS = 48
"""Intervals of a histogram; at the width of the chart each is 12 px."""
SHOWN = 10
"""Pictures in a row of heads."""
THUMB = 96
"""Side of a picture, in pixels."""
SOUND = "sound head"
"""Caption of a head without a defect, where the source records the defects that it plants."""


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: its place and width in percent of the axis, its height from 0 to 1."""

    x: float
    width: float
    height: float
    count: int
    fails: bool


@dataclass(frozen=True)
class Mark:
    """A tick or a limit: its place in percent of its axis, and the text at it."""

    at: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """Bars, and the marks of the axes; the limits are on the horizontal axis, which is long enough to show them."""

    bars: list[Bar]
    scores: list[Mark]
    counts: list[Mark]
    limits: list[Mark]


@dataclass(frozen=True)
class ExampleHead:
    """One identity or view under a chart; `planted` is empty where the truth is not known."""

    caption: str
    score: float
    fails: bool
    picture: str
    planted: str

    @property
    def is_wrong(self) -> bool:
        """Whether a sound head fails."""
        return self.fails and self.planted == SOUND


@dataclass(frozen=True)
class Chart:
    """The scores of one rule: their histogram, how many are NaN, and heads worth looking at."""

    why: str
    score: str
    unit: str
    histogram: Histogram | None
    without: int
    sound: list[int]
    """Identities that fail the rule, or of which a view fails it, although nothing is planted in them."""
    worst: list[ExampleHead]
    borderline: list[ExampleHead]


def selection_sections(dataset: Dataset, selection: str) -> list[Section]:
    """A selection's counts, and its rules with their scores and heads (reads all scores, and a few pictures).

    Raises:
        UserError: the scores or the decisions changed after the selection was made.
    """
    made = read_selection(dataset, selection)
    if made.policy is None or made.summary is None:
        raise UserError(f"selection {selection} holds no policy; run spinset select again")
    summary, policy = made.summary, parse_policy(made.policy)
    judged = judge_dataset(dataset, policy)
    if rule_counts(policy, judged.judgement) != summary["rules"]:
        raise UserError(f"selection {selection} is older than its scores or decisions; run spinset select again")
    planted = _planted(dataset)
    thumbnails = Thumbnails(dataset)
    charts = [
        _chart(thumbnails, rule, tally, judged, planted)
        for rule, tally in zip(policy.rules, judged.judgement.tallies, strict=True)
    ]
    truth = _compare(made.rows, planted)
    return [
        Section(
            f"Selection {selection}",
            render("filters", "counts.html", summary=summary, about=policy.about, truth=truth),
        ),
        Section("Scores and limits", render("filters", "charts.html", charts=charts, size=THUMB)),
    ]


def _planted(dataset: Dataset) -> dict[int, str]:
    """The defects that the source planted in each identity, as text; identities whose truth is not known are left out."""
    return {
        row["identity"]: ", ".join(f"{d['kind'].replace('_', ' ')} {d['strength']:.2f}" for d in row["defects"])
        or SOUND
        for row in dataset.all_identities.select(["identity", "defects"]).to_pylist()
        if row["defects"] is not None
    }


def _compare(rows: pa.Table, planted: dict[int, str]) -> dict[str, Any] | None:
    """The rows of a selection beside the truth: sound heads it drops and defective heads it keeps; None without truth."""
    of_identities = rows.filter(pa.array(rows.column("view").to_numpy() == WHOLE)).to_pylist()
    whole = [row for row in of_identities if row["identity"] in planted]
    if not whole:
        return None
    return {
        "sound": sum(planted[row["identity"]] == SOUND for row in whole),
        "defective": sum(planted[row["identity"]] != SOUND for row in whole),
        "dropped": [row for row in whole if not row["keep"] and planted[row["identity"]] == SOUND],
        "kept": [(row["identity"], planted[row["identity"]]) for row in whole
                 if row["keep"] and planted[row["identity"]] != SOUND],
    }  # fmt: skip


def _chart(thumbnails: Thumbnails, rule: Rule, tally: Tally, judged: JudgedDataset, planted: dict[int, str]) -> Chart:
    heads, values, failing = judged.heads, tally.values, tally.failing
    of_views = tally.level == VIEW
    owners = heads.owner if of_views else np.arange(len(values))
    known = np.flatnonzero(tally.judged & ~np.isnan(values))
    beyond = np.maximum(tally.low - values, values - tally.high)
    ranked = known[np.argsort(-beyond[known], kind="stable")]
    # A view that a decision keeps passes far beyond the limit, so it is no borderline head.
    fails, passes = ranked[failing[ranked]], ranked[~failing[ranked] & (beyond[ranked] <= 0)]
    worst = _one_each(fails, owners)[:SHOWN]
    near = [*_one_each(passes, owners)[: SHOWN // 2][::-1], *_one_each(fails[::-1], owners)[: SHOWN // 2]]

    @cache
    def show(row: int) -> ExampleHead:
        owner = int(owners[row])
        identity = int(heads.identity[owner])
        which = row if of_views else _most_frontal(heads, owner)
        caption = f"identity {identity}" + (f" view {heads.view[row]}" if of_views else "")
        (data,) = thumbnails.read([(identity, int(heads.view[which]))], "rgb")
        pixels = np.asarray(thumbnail(data, THUMB) or damaged_tile(THUMB))
        return ExampleHead(caption, float(values[row]), bool(failing[row]), picture(pixels), planted.get(identity, ""))

    return Chart(
        str(rule),
        _meaning(rule, judged.tables),
        "views" if of_views else "identities",
        histogram(values[known], failing[known], tally.low, tally.high) if len(known) else None,
        int((failing & np.isnan(values)).sum()),
        [int(i) for i in heads.identity[np.unique(owners[failing])] if planted.get(int(i)) == SOUND],
        [show(int(row)) for row in worst],
        [show(int(row)) for row in near],
    )


def _meaning(rule: Rule, opened: dict[str, Scores]) -> str:
    """The title of a rule's axis: the score, and its meaning and unit as its table states them."""
    if isinstance(rule.score, Softmax):
        return f"{rule.score}: probability of the first, 0 to 1"
    table, column = rule.score.split(".")
    return f"{rule.score}: {opened[table].columns[column].metadata[b'about'].decode()}"


def _one_each(rows: Int64[np.ndarray, " k"], owners: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " j"]:
    """The first row of each identity, in the order of the rows."""
    first = np.unique(owners[rows], return_index=True)[1]
    return rows[np.sort(first)]


def histogram(values: Float32[np.ndarray, " k"], failing: Bool[np.ndarray, " k"], low: float, high: float) -> Histogram:
    """Bars that each hold only passing or only failing scores; heights are logarithms of counts.

    The limits are edges of bars, and the axis reaches them. If scores and limits are whole numbers, each number has one
    bar, in its middle, and a limit lies between the last number that passes and the first that fails. Where equal scores
    or decisions make an interval hold both, a passing and a failing bar share its width.
    """
    finite = [x for x in (low, high) if math.isfinite(x)]
    first, last = min([float(values.min()), *finite]), max([float(values.max()), *finite])
    if last - first < BINS and not np.modf([*values, *finite])[0].any():
        # One more number than there are: a limit at the last one is not the end of the axis.
        ends = (first - 0.5, last + 1.5)
        edges, ticks = np.arange(ends[0], ends[1] + 1), [x for x in round_numbers(first, last + 1) if x.is_integer()]
        drawn = low - 0.5, high + 0.5
    else:
        ticks = round_numbers(first, last)
        ends, drawn = (ticks[0], ticks[-1]), (low, high)
        # Scores have 32 bits, and so has a limit that they are compared with; what equals the upper one still passes.
        splits = float(np.float32(low)), float(np.nextafter(np.float32(high), np.float32(np.inf)))
        edges = np.unique([*np.linspace(*ends, BINS + 1), *(x for x in splits if ends[0] < x < ends[1])])
    # The first and the last tick equal the ends of the scores only up to rounding.
    inside = values.astype(np.float64).clip(*ends)
    passed, failed = (np.histogram(inside[which], edges)[0] for which in (~failing, failing))
    most = int(np.maximum(passed, failed).max())

    def place(x: float) -> float:
        return 100 * (x - ends[0]) / (ends[1] - ends[0])

    bars = []
    for left, right, *counts in zip(edges[:-1], edges[1:], passed, failed, strict=True):
        shown = [(int(count), fails) for count, fails in zip(counts, (False, True), strict=True) if count]
        width = (place(right) - place(left)) / max(len(shown), 1)
        bars += [
            Bar(place(left) + i * width, width, float(np.log1p(count) / np.log1p(most)), count, fails)
            for i, (count, fails) in enumerate(shown)
        ]
    steps = [m * 10**k for k in range(10) for m in ((1, 2, 5) if most < 50 else (1,))]
    return Histogram(
        bars,
        [Mark(place(x), f"{x:g}") for x in ticks if ends[0] <= x <= ends[1]],
        [Mark(float(100 * np.log1p(n) / np.log1p(most)), str(n)) for n in steps if n <= most],
        [Mark(place(x), f"{name} {limit:.4g}") for name, limit, x in zip(("min", "max"), (low, high), drawn, strict=True)
         if math.isfinite(limit)],
    )  # fmt: skip


def _most_frontal(heads: Heads, owner: int) -> int:
    """The view of an identity that is nearest to the front."""
    rows = np.flatnonzero(heads.owner == owner)
    away = np.hypot(wrapped(heads.azimuth[rows]), heads.elevation[rows])
    return int(rows[away.argmin()])
