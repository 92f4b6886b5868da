"""What a person sees of a selection: what each rule did, its scores and limits, the worst heads and the borderline ones."""

import io
import json
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from filters.policy import Heads, in_sector, limits, rule_scores
from filters.rules import Rule, parse_policy
from filters.select import column_of, heads_of, open_tables
from jobs.page import Section, picture, render
from manifests.dataset import Dataset
from manifests.scores import VIEW, Scores
from manifests.selection import selection_file

BINS = 48
SHOWN = 10
THUMB = 96


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: its place and width in percent of the axis, its height from 0 to 1."""

    x: float
    width: float
    height: float
    count: int
    fails: bool


@dataclass(frozen=True)
class Shown:
    """One identity or view under a rule."""

    caption: str
    score: float
    fails: bool
    picture: str


@dataclass(frozen=True)
class Chart:
    """The scores of one rule: their histogram, how many are no number, and heads worth looking at."""

    why: str
    unit: str
    low: float
    high: float
    bars: list[Bar]
    without: int
    worst: list[Shown]
    borderline: list[Shown]


def sections(dataset: Dataset, selection: str) -> list[Section]:
    """A selection's counts, and its rules with their scores and heads (reads all scores, and a few pictures)."""
    summary, document = (json.loads(dataset.storage.read(selection_file(selection, f"{name}.json")))
                         for name in ("summary", "policy"))  # fmt: skip
    policy = parse_policy(document)
    opened = open_tables(dataset, policy)
    heads = heads_of(next(iter(opened.values())))
    charts = [_chart(dataset, rule, heads, opened) for rule in policy.rules]
    return [
        Section(f"Selection {selection}", render("filters", "counts.html", summary=summary, about=policy.about)),
        Section("Scores and limits", render("filters", "charts.html", charts=charts, size=THUMB)),
    ]


def _chart(dataset: Dataset, rule: Rule, heads: Heads, opened: dict[str, Scores]) -> Chart:
    scores = rule_scores(rule, partial(column_of, opened))
    of_views, values = scores.level == VIEW, scores.values
    judged = in_sector(rule.where, heads) & scores.valid if of_views else scores.valid
    low, high = limits(rule, values, judged)
    known = np.flatnonzero(judged & ~np.isnan(values))
    beyond = np.maximum(low - values, values - high)
    owners = heads.owner if of_views else np.arange(len(values))
    ranked = known[np.argsort(-beyond[known], kind="stable")]
    failing, passing = ranked[beyond[ranked] > 0], ranked[beyond[ranked] <= 0]
    worst = _one_each(failing, owners)[:SHOWN]
    near = [*_one_each(passing, owners)[: SHOWN // 2][::-1], *_one_each(failing[::-1], owners)[: SHOWN // 2]]

    @cache
    def show(row: int) -> Shown:
        owner = int(owners[row])
        which = row if of_views else _most_frontal(heads, owner)
        caption = f"identity {heads.identity[owner]}" + (f" view {heads.view[row]}" if of_views else "")
        pixels = _picture(dataset, int(heads.identity[owner]), int(heads.view[which]))
        return Shown(caption, float(values[row]), bool(beyond[row] > 0), picture(pixels))

    return Chart(
        str(rule),
        "views" if of_views else "identities",
        float(values[known].min(initial=np.inf)),
        float(values[known].max(initial=-np.inf)),
        histogram(values[known], low, high),
        int(judged.sum()) - len(known),
        [show(int(row)) for row in worst],
        [show(int(row)) for row in near],
    )


def _one_each(rows: Int64[np.ndarray, " k"], owners: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " j"]:
    """The first row of each identity, in the order of the rows."""
    first = np.unique(owners[rows], return_index=True)[1]
    return rows[np.sort(first)]


def histogram(values: Float32[np.ndarray, " k"], low: float, high: float) -> list[Bar]:
    """Bars that hold passing (low to high) or failing scores only: the limits are edges. Heights are logs of counts."""
    if not len(values):
        return []
    first, last = float(values.min()), float(values.max())
    span = (last - first) or 1.0
    # What equals the upper limit passes, so the edge lies just above it.
    inner = [x for x in (low, float(np.nextafter(np.float32(high), np.float32(np.inf)))) if first < x < last]
    edges = np.unique([*np.linspace(first, first + span, BINS + 1), *inner])
    counts, _ = np.histogram(values.astype(np.float64), edges)
    tallest = np.log1p(counts.max())
    return [
        Bar(100 * (left - first) / span, 100 * (right - left) / span, float(np.log1p(n) / tallest), int(n),
            not low <= (left + right) / 2 <= high)
        for left, right, n in zip(edges[:-1], edges[1:], counts, strict=True)
        if n
    ]  # fmt: skip


def _most_frontal(heads: Heads, owner: int) -> int:
    """The view of an identity that is nearest to the front."""
    rows = np.flatnonzero(heads.owner == owner)
    away = np.hypot((heads.azimuth[rows] + 180) % 360 - 180, heads.elevation[rows])
    return int(rows[away.argmin()])


def _picture(dataset: Dataset, identity: int, view: int) -> UInt8[np.ndarray, "h w 3"]:
    shard = dataset.plan.shard_of(identity)
    views = dataset.views(shard, ["identity", "view", "rgb"])
    own = (views.column("identity").to_numpy() == identity) & (views.column("view").to_numpy() == view)
    data = next(dataset.members(shard, "rgb", views.filter(pa.array(own))))
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((THUMB, THUMB), Image.Resampling.LANCZOS))
