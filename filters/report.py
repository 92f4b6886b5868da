"""The sections of a selection on a page: counts of each rule, its scores and limits, the worst and the borderline heads."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from markupsafe import Markup

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
from pages.charts import histogram
from pages.page import Section, picture, render

SHOWN = 10
"""Pictures in a row of heads."""
THUMB = 96
"""Side of a picture, in pixels."""
SOUND = "sound head"
"""Caption of a head without a defect, where the source records the defects that it plants."""


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
    unit: str
    histogram: Markup | None
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

    why, score, unit = str(rule), _meaning(rule, judged.tables), "views" if of_views else "identities"
    return Chart(
        why,
        unit,
        histogram(why, score, unit, values[known], failing[known], tally.low, tally.high) if len(known) else None,
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


def _most_frontal(heads: Heads, owner: int) -> int:
    """The view of an identity that is nearest to the front."""
    rows = np.flatnonzero(heads.owner == owner)
    away = np.hypot(wrapped(heads.azimuth[rows]), heads.elevation[rows])
    return int(rows[away.argmin()])
