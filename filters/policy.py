"""Judges heads by a policy: the one place where a score meets a threshold. Arrays in, arrays out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64, Integer, UInt64

from filters.rules import Policy, Rule, Sector, Softmax
from manifests.errors import UserError
from manifests.scores import IDENTITY, VIEW

KEEP, DROP, UNDECIDED = 1, -1, 0


@dataclass(frozen=True, eq=False)
class Heads:
    """All identities, in order, and all their views, ordered by identity and view."""

    identity: Int64[np.ndarray, " b"]
    owner: Int64[np.ndarray, " n"]
    """Position in `identity` of the identity of each view."""
    view: Integer[np.ndarray, " n"]
    azimuth: Float32[np.ndarray, " n"]
    """Degrees."""
    elevation: Float32[np.ndarray, " n"]
    """Degrees."""


@dataclass(frozen=True, eq=False)
class Column:
    """Scores of all views or of all identities, by `level`."""

    level: str
    values: Float32[np.ndarray, " m"]
    """The scores; NaN where the scorer found no number."""
    valid: Bool[np.ndarray, " m"]
    """False where the scorer does not look, as CLIP at frontal views."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """The decisions of people: KEEP, DROP or UNDECIDED for each identity and each view."""

    identities: Int8[np.ndarray, " b"]
    views: Int8[np.ndarray, " n"]

    @classmethod
    def none(cls, heads: Heads) -> "Decisions":
        return cls(np.zeros(len(heads.identity), np.int8), np.zeros(len(heads.view), np.int8))


@dataclass(frozen=True, eq=False)
class Verdict:
    """The rules that each identity or each view fails."""

    failed: UInt64[np.ndarray, " m"]
    """Bit i is set where rule i failed."""
    value: Float32[np.ndarray, " m"]
    """The score that failed the first of them, or the number of views that did; NaN without one."""

    @classmethod
    def start(cls, rows: int) -> "Verdict":
        return cls(np.zeros(rows, np.uint64), np.full(rows, np.nan, np.float32))

    def add(self, rule: int, failing: Bool[np.ndarray, " m"], value: Float32[np.ndarray, " m"]) -> None:
        first = failing & (self.failed == 0)
        self.value[first] = value[first]
        self.failed[failing] |= np.uint64(1 << rule)


@dataclass(frozen=True, eq=False)
class Tally:
    """The scores that one rule compared with its limits, and the outcome."""

    level: str
    """Whether the scores are of views or of identities."""
    drops: str
    """Whether a failure drops the view or the identity."""
    values: Float32[np.ndarray, " m"]
    judged: Bool[np.ndarray, " m"]
    failing: Bool[np.ndarray, " m"]
    """Which of the judged fail: scores beyond the limits and NaN, except views that a decision keeps."""
    low: float
    """The lowest score that passes; for a quantile, the lowest of those that it keeps."""
    high: float
    """The highest score that passes."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """The outcome of a policy and of decisions for all heads."""

    tallies: tuple[Tally, ...]
    """One per rule."""
    identities: Verdict
    views: Verdict
    keep_identity: Bool[np.ndarray, " b"]
    keep_view: Bool[np.ndarray, " n"]
    empty: Bool[np.ndarray, " b"]
    """Identities that pass every rule but have no view left."""
    incomplete: Bool[np.ndarray, " b"]
    """Identities that pass every rule but lose a view, under a policy of whole identities."""


def judge(policy: Policy, heads: Heads, column: Callable[[str], Column], decisions: Decisions) -> Judgement:
    """Apply the rules in order, then the decisions; `column` returns the scores of a name such as "arcface.mean_cosine".

    A view that a decision keeps passes every rule, one that a decision drops is not judged. Decisions on identities come
    last, so that none of them moves a quantile. Raises UserError where a rule judges views that were not scored.
    """
    views, identities = Verdict.start(len(heads.view)), Verdict.start(len(heads.identity))
    tallies = []
    for i, rule in enumerate(policy.rules):
        scores = _scores_of(rule, column)
        if scores.level == IDENTITY:
            tallies.append(_judge_identities(i, rule, scores, heads, identities))
        else:
            tallies.append(_judge_views(i, rule, scores, heads, identities, views, decisions))
    return _conclude(policy, heads, tuple(tallies), identities, views, decisions)


def _scores_of(rule: Rule, column: Callable[[str], Column]) -> Column:
    """The numbers that a rule compares with its limits; raises UserError where they mix views and identities."""
    columns = {name: column(name) for name in rule.columns}
    if len(levels := {c.level for c in columns.values()}) > 1:
        raise UserError(f"rule {rule.name} mixes scores of views and of identities: {', '.join(rule.columns)}")
    if levels == {IDENTITY} and (rule.where != Sector() or rule.drop == VIEW):
        raise UserError(
            f"rule {rule.name}: {rule.score} is a score of identities, so where and drop = view mean nothing"
        )
    return scores_of(rule.score, columns.__getitem__)


def scores_of(score: str | Softmax, column: Callable[[str], Column]) -> Column:
    """The numbers of a score: of a column, or a softmax of several columns of one level."""
    if not isinstance(score, Softmax):
        return column(score)
    columns = [column(name) for name in score.softmax]
    first = columns[0]
    with np.errstate(over="ignore"):
        odds = [np.exp(np.float32(score.scale) * (c.values - first.values)) for c in columns[1:]]
    return Column(first.level, 1 / (1 + np.sum(odds, axis=0)), np.logical_and.reduce([c.valid for c in columns]))


def _judge_identities(i: int, rule: Rule, scores: Column, heads: Heads, identities: Verdict) -> Tally:
    if not scores.valid.all():
        unscored = heads.identity[np.argmin(scores.valid)]
        raise UserError(f"rule {rule.name}: {rule.score} was not scored for identity {unscored}")
    judged = identities.failed == 0 if rule.is_quantile else np.ones(len(heads.identity), bool)
    failing = _failing(rule, scores.values, judged)
    identities.add(i, failing, scores.values)
    return Tally(IDENTITY, IDENTITY, scores.values, judged, failing, *_limits(rule, scores.values[judged & ~failing]))


def _judge_views(
    i: int, rule: Rule, scores: Column, heads: Heads, identities: Verdict, views: Verdict, decisions: Decisions
) -> Tally:
    judged = in_sector(rule.where, heads) & (decisions.views != DROP)
    if not (scored := scores.valid | ~judged).all():
        at = int(np.argmin(scored))
        raise UserError(
            f"rule {rule.name} judges {rule.where}, but {rule.score} was not scored for {int((~scored).sum())} of those "
            f"views (identity {heads.identity[heads.owner[at]]} view {heads.view[at]} at azimuth {heads.azimuth[at]:g})"
        )
    if rule.is_quantile:
        judged &= (views.failed == 0) & (identities.failed == 0)[heads.owner]
    failing = _failing(rule, scores.values, judged)
    limits = _limits(rule, scores.values[judged & ~failing])
    failing &= decisions.views != KEEP
    if rule.drop == IDENTITY:
        failures, judgements = (np.bincount(heads.owner[x], minlength=len(heads.identity)) for x in (failing, judged))
        identities.add(i, _too_many(rule, failures, judgements), failures.astype(np.float32))
    else:
        views.add(i, failing, scores.values)
    return Tally(VIEW, rule.drop or VIEW, scores.values, judged, failing, *limits)


def _failing(rule: Rule, values: Float32[np.ndarray, " m"], judged: Bool[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
    """Which of the judged fail; NaN always does."""
    if not rule.is_quantile:
        low = values >= rule.min if rule.min is not None else ~np.isnan(values)
        high = values <= rule.max if rule.max is not None else low
        return judged & ~(low & high)
    sign = -1 if rule.keep_top is not None else 1
    ranked = np.flatnonzero(judged & ~np.isnan(values))
    # A stable sort of rows that are in order breaks ties by key.
    ranked = ranked[np.argsort(sign * values[ranked], kind="stable")]
    passing = np.zeros(len(values), bool)
    passing[ranked[: math.ceil(rule.share * len(ranked) - 1e-9)]] = True
    return judged & ~passing


def _too_many(
    rule: Rule, failing: Integer[np.ndarray, " b"], judged: Integer[np.ndarray, " b"]
) -> Bool[np.ndarray, " b"]:
    if rule.min_passing is not None:
        return judged - failing < rule.min_passing
    if rule.max_failing_share is not None:
        return failing > rule.max_failing_share * judged
    return failing > (rule.max_failing or 0)


def _limits(rule: Rule, passing: Float32[np.ndarray, " k"]) -> tuple[float, float]:
    """The lowest and the highest score that passes; for a quantile, from the scores that it keeps."""
    if not rule.is_quantile:
        return (-math.inf if rule.min is None else rule.min), (math.inf if rule.max is None else rule.max)
    if not len(passing):
        return math.inf, -math.inf
    return (float(passing.min()), math.inf) if rule.keep_top is not None else (-math.inf, float(passing.max()))


def in_sector(sector: Sector, heads: Heads) -> Bool[np.ndarray, " n"]:
    """Which views lie in a sector, both ends included, azimuths around the circle."""
    (left, right), (low, high) = sector.azimuth, sector.elevation
    inside = np.ones(len(heads.view), bool)
    if right - left < 360:
        inside &= (heads.azimuth - np.float32(left)) % 360 <= np.float32(right - left)
    if (low, high) != (-90, 90):
        inside &= (heads.elevation >= np.float32(low)) & (heads.elevation <= np.float32(high))
    return inside


def _conclude(
    policy: Policy, heads: Heads, tallies: tuple[Tally, ...], identities: Verdict, views: Verdict, decisions: Decisions
) -> Judgement:
    passing_views = (views.failed == 0) & (decisions.views != DROP)
    left = np.bincount(heads.owner[passing_views], minlength=len(heads.identity))
    total = np.bincount(heads.owner, minlength=len(heads.identity))
    passing = identities.failed == 0
    empty = passing & (left == 0)
    incomplete = passing & ~empty & (left < total) & policy.whole_identities
    keep = passing & ~empty & ~incomplete
    keep = np.where(decisions.identities == UNDECIDED, keep, (decisions.identities == KEEP) & (left > 0))
    return Judgement(tallies, identities, views, keep, passing_views & keep[heads.owner], empty, incomplete)
