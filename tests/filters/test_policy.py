"""Judging, against a twin that does it row by row as the guide tells it."""

import math

import numpy as np
import pytest

from filters.policy import DROP, KEEP, Column, Decisions, Heads, in_sector, judge
from filters.rules import Sector, Softmax, parse_policy

nan = float("nan")


def heads(azimuths: list[list[float]], elevation: float = 0.0) -> Heads:
    counts = [len(a) for a in azimuths]
    azimuth = np.array([x for a in azimuths for x in a], np.float32)
    views = np.concatenate([np.arange(c, dtype=np.int16) for c in counts])
    owner = np.repeat(np.arange(len(counts)), counts)
    return Heads(np.arange(len(counts)), owner, views, azimuth, np.full(len(azimuth), elevation, np.float32))


def scores(level: str, values: list[float], valid: list[bool] | None = None) -> Column:
    values = np.array(values, np.float32)
    return Column(level, values, np.ones(len(values), bool) if valid is None else np.array(valid))


def run(rules: list[dict], heads: Heads, columns: dict[str, Column], decisions: Decisions | None = None, **policy):
    parsed = parse_policy({"name": "p", "rules": rules, **policy})
    return judge(parsed, heads, columns.__getitem__, decisions or Decisions.none(heads))


def twin(policy, heads: Heads, columns: dict[str, Column], decisions: Decisions):
    """The same, slowly: (kept identities, kept views)."""
    identities, views = range(len(heads.identity)), range(len(heads.view))
    of = [[v for v in views if heads.owner[v] == i] for i in identities]
    lost_identity, lost_view = set(), {v for v in views if decisions.views[v] == DROP}
    by_rule: set[int] = set()

    def inside(rule, v):
        low, high = rule.where.azimuth
        turns = any(low <= heads.azimuth[v] + 360 * k <= high for k in (-1, 0, 1))
        return turns and rule.where.elevation[0] <= heads.elevation[v] <= rule.where.elevation[1]

    def value(rule, row):
        if not isinstance(rule.score, Softmax):
            return float(columns[rule.score].values[row])
        raw = [rule.score.scale * float(columns[c].values[row]) for c in rule.score.softmax]
        return (
            nan if any(map(math.isnan, raw)) else math.exp(raw[0] - max(raw)) / sum(math.exp(x - max(raw)) for x in raw)
        )

    def failing(rule, rows, survivors):
        numbers = {row: value(rule, row) for row in rows}
        bad = {row for row, x in numbers.items() if math.isnan(x)}
        if rule.is_quantile:
            top = rule.keep_top is not None
            ranked = sorted(
                (r for r in survivors if r not in bad), key=lambda r: (-numbers[r] if top else numbers[r], r)
            )
            best = set(ranked[: math.ceil((rule.keep_top if top else rule.keep_bottom) * len(ranked) - 1e-9)])
            return {r for r in survivors if r not in best}
        low, high = (-math.inf if rule.min is None else rule.min), (math.inf if rule.max is None else rule.max)
        return bad | {r for r, x in numbers.items() if not low <= x <= high}

    for rule in policy.rules:
        if columns[rule.columns[0]].level == "identity":
            lost_identity |= failing(rule, list(identities), [i for i in identities if i not in lost_identity])
            continue
        judged = [v for v in views if inside(rule, v) and decisions.views[v] != DROP]
        alive = [v for v in judged if v not in by_rule and heads.owner[v] not in lost_identity]
        bad = {v for v in failing(rule, judged, alive) if decisions.views[v] != KEEP}
        if rule.drop != "identity":
            by_rule |= bad
            continue
        judged = alive if rule.is_quantile else judged
        for i in identities:
            mine = [v for v in of[i] if v in judged]
            fails = sum(v in bad for v in mine)
            if rule.min_passing is not None:
                lost = len(mine) - fails < rule.min_passing
            elif rule.max_failing_share is not None:
                lost = fails > rule.max_failing_share * len(mine)
            else:
                lost = fails > (rule.max_failing or 0)
            lost_identity |= {i} if lost else set()
    lost_view |= by_rule
    kept = set()
    for i in identities:
        left = [v for v in of[i] if v not in lost_view]
        whole = len(left) == len(of[i]) or not policy.whole_identities
        ok = i not in lost_identity and left and whole
        decided = decisions.identities[i]
        if decided == KEEP:
            ok = bool(left)
        if ok and decided != DROP:
            kept.add(i)
    return kept, {v for v in views if v not in lost_view and heads.owner[v] in kept}


@pytest.mark.parametrize("seed", range(60))
def test_judging_equals_its_slow_twin(seed):
    rng = np.random.default_rng(seed)
    rig = heads([list(rng.uniform(-180, 180, rng.integers(1, 7)).round(1)) for _ in range(12)])
    n, b = len(rig.view), len(rig.identity)

    def noise(level, size):
        values = rng.integers(0, 6, size) / 5
        values[rng.random(size) < 0.1] = nan
        return scores(level, values)

    columns = {
        "a.v": noise("view", n),
        "a.w": noise("view", n),
        "b.i": noise("identity", b),
        "b.j": noise("identity", b),
    }
    pool = [
        {
            "name": "soft",
            "score": {"softmax": ["a.v", "a.w"], "scale": 3.0},
            "max": 0.7,
            "where": {"azimuth": [90, 270]},
        },
        {"name": "band", "score": "a.w", "min": 0.1, "max": 0.9, "where": {"azimuth": [-60, 60]}},
        {"name": "k", "score": "a.v", "max": 0.7, "drop": "identity", "max_failing": 1},
        {"name": "share", "score": "a.v", "max": 0.7, "drop": "identity", "max_failing_share": 0.34},
        {"name": "need", "score": "a.w", "min": 0.3, "drop": "identity", "min_passing": 1},
        {"name": "topviews", "score": "a.w", "keep_top": 0.8},
        {"name": "topback", "score": "a.v", "keep_bottom": 0.6, "drop": "identity", "where": {"azimuth": [90, 270]}},
        {"name": "low", "score": "b.j", "keep_bottom": 0.75},
        {"name": "top", "score": "b.i", "keep_top": 0.7},
    ]
    chosen = [pool[i] for i in rng.permutation(len(pool))[:4]]
    policy = parse_policy({"name": "p", "rules": chosen, "whole_identities": bool(rng.random() < 0.3)})
    decisions = Decisions(*(rng.choice([0, 0, 0, 1, -1], size).astype(np.int8) for size in (b, n)))
    fast = judge(policy, rig, columns.__getitem__, decisions)
    kept, kept_views = twin(policy, rig, columns, decisions)
    assert set(np.flatnonzero(fast.keep_identity).tolist()) == kept
    assert set(np.flatnonzero(fast.keep_view).tolist()) == kept_views


def test_sectors_go_around_the_circle():
    rig = heads([[-180, -150, -120, -90, 0, 90, 119, 120, 180, 179]])
    inside = in_sector(Sector(azimuth=(120.0, 240.0)), rig)
    assert rig.azimuth[inside].tolist() == [-180, -150, -120, 120, 180, 179]
    assert in_sector(Sector(azimuth=(-60.0, 60.0)), rig).sum() == 1
    assert in_sector(Sector(elevation=(10.0, 20.0)), rig).sum() == 0


def test_the_softmax_of_the_paper_is_a_margin_of_0_026():
    rig = heads([[180, 180, 180]])
    margin = math.log(0.93 / 0.07) / 100
    columns = {
        "c.front": scores("view", [0.2 + margin + 1e-4, 0.2 + margin - 1e-4, 0.1]),
        "c.back": scores("view", [0.2] * 3),
    }
    rule = {"name": "janus", "score": {"softmax": ["c.front", "c.back"]}, "max": 0.93}
    assert run([rule], rig, columns).keep_view.tolist() == [False, True, True]
    assert margin == pytest.approx(0.0259, abs=1e-4)


def test_quantiles_rank_survivors_and_break_ties_by_key():
    rig = heads([[0]] * 10)
    columns = {"m.bad": scores("identity", [1] + [0] * 9), "a.cos": scores("identity", [0.9] + [0.5] * 8 + [0.4])}
    rules = [{"name": "bad", "score": "m.bad", "max": 0.5}, {"name": "top", "score": "a.cos", "keep_top": 0.7}]
    # Nine survive, ceil(6.3) = 7 stay: of the eight equal ones, the first seven.
    assert np.flatnonzero(run(rules, rig, columns).keep_identity).tolist() == [1, 2, 3, 4, 5, 6, 7]
    # In the other order the best one takes a place before it is lost.
    assert np.flatnonzero(run(rules[::-1], rig, columns).keep_identity).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("share", "stay"), [(0.0, 0), (0.7, 7), (0.3, 3), (1.0, 10)])
def test_shares_of_ten_are_whole(share, stay):
    columns = {"a.cos": scores("identity", list(range(10)))}
    assert (
        run([{"name": "t", "score": "a.cos", "keep_top": share}], heads([[0]] * 10), columns).keep_identity.sum()
        == stay
    )


def test_nan_fails_every_rule_and_ranks_nowhere():
    rig = heads([[0, 180]] * 4)
    views = {"i.fog": scores("view", [nan, 0, 0, 0, 0, 0, 0, 0])}
    for limit in ({"max": 1}, {"min": -1}, {"keep_top": 1.0}):
        assert not run([{"name": "r", "score": "i.fog", **limit}], rig, views).keep_view[0]
    faces = {"a.cos": scores("identity", [nan, 3, 2, 1])}
    kept = run([{"name": "r", "score": "a.cos", "keep_top": 0.67}], rig, faces).keep_identity
    assert kept.tolist() == [False, True, True, True]  # ceil(0.67 * 3) = 3 of the three that have a number


def test_views_that_were_not_scored_are_an_error_only_where_a_rule_looks():
    rig = heads([[0, 100, 180]])
    columns = {"c.p": scores("view", [0, 0, 1], [False, False, True])}
    rule = {"name": "janus", "score": "c.p", "max": 0.5}
    assert run([{**rule, "where": {"azimuth": [120, 240]}}], rig, columns).keep_view.tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"was not scored for 1 of those views \(identity 0 view 1 at azimuth 100\)"):
        run([{**rule, "where": {"azimuth": [90, 270]}}], rig, columns)


def test_levels_do_not_mix():
    rig = heads([[0]])
    columns = {"a.v": scores("view", [0]), "a.i": scores("identity", [0])}
    with pytest.raises(ValueError, match="mixes scores of views and of identities"):
        run([{"name": "r", "score": {"softmax": ["a.v", "a.i"]}, "max": 0.5}], rig, columns)
    for wrong in ({"where": {"azimuth": [0, 90]}}, {"drop": "view"}):
        with pytest.raises(ValueError, match="is a score of identities"):
            run([{"name": "r", "score": "a.i", "max": 0.5, **wrong}], rig, columns)


def test_a_decision_on_an_identity_moves_no_other():
    rig, rng = heads([[0]] * 20), np.random.default_rng(0)
    columns = {"a.cos": scores("identity", list(rng.random(20)))}
    rules = [{"name": "t", "score": "a.cos", "keep_top": 0.5}]
    before = run(rules, rig, columns).keep_identity
    for i in range(20):
        decisions = Decisions.none(rig)
        decisions.identities[i] = DROP if before[i] else KEEP
        after = run(rules, rig, columns, decisions).keep_identity
        assert np.flatnonzero(before != after).tolist() == [i]


def test_a_view_that_a_person_keeps_saves_its_identity():
    rig = heads([[180, 170], [180, 170]])
    columns = {"c.p": scores("view", [1, 0, 1, 0])}
    rules = [{"name": "janus", "score": "c.p", "max": 0.5, "drop": "identity"}]
    decisions = Decisions.none(rig)
    decisions.views[0] = KEEP
    assert run(rules, rig, columns, decisions).keep_view.tolist() == [True, True, False, False]


def test_rings_that_must_be_whole():
    rig = heads([[0, 180], [0, 180], [0, 180]])
    columns = {"c.p": scores("view", [0, 1, 0, 0, 1, 1])}
    rules = [{"name": "janus", "score": "c.p", "max": 0.5}]
    loose, whole = run(rules, rig, columns), run(rules, rig, columns, whole_identities=True)
    assert loose.keep_identity.tolist() == [True, True, False]
    assert loose.empty.tolist() == [False, False, True]
    assert whole.keep_identity.tolist() == [False, True, False]
    assert whole.incomplete.tolist() == [True, False, False]
    kept = Decisions.none(rig)
    kept.identities[:] = KEEP
    assert run(rules, rig, columns, kept, whole_identities=True).keep_identity.tolist() == [True, True, False]
