"""The judge of the page gives what filters/policy.py gives: the same random policies, heads, scores and decisions in both."""

from typing import Any

import numpy as np
import pytest

from filters.policy import Column, Decisions, Heads, judge
from filters.review.columns import encode
from filters.rules import parse_policy

JUDGE = """async (cases) => {
  const { judge } = await import("/static/policy.js");
  const column = ({ level, codes, first, last }) =>
    ({ level, codes: Uint32Array.from(codes), first: Float32Array.from(first), last: Float32Array.from(last) });
  return cases.map(({ policy, heads, columns, decisions }) => {
    const found = Object.fromEntries(Object.entries(columns).map(([name, one]) => [name, column(one)]));
    const [azimuth, elevation] = [column(heads.azimuth), column(heads.elevation)];
    const there = { ...heads, start: Uint32Array.from(heads.start), azimuth, elevation };
    const made = { identities: Int8Array.from(decisions.identities), views: Int8Array.from(decisions.views), version: 1 };
    // What is kept from another policy and other decisions on identities must not show.
    const cache = new Map(), [first, ...rest] = policy.rules, undecided = new Int8Array(made.identities.length);
    const other = { ...policy, rules: [{ ...first, ...("min" in first ? { min: 0.5 } : { max: 0.15 }) }, ...rest] };
    judge(other, there, (score) => found[score], { ...made, identities: undecided }, cache);
    const result = judge(policy, there, (score) => found[score], made, cache);
    const limit = (x) => (Number.isFinite(x) ? Math.fround(x) : null);
    return {
      keepIdentity: Array.from(result.keepIdentity), keepView: Array.from(result.keepView),
      empty: result.empty, incomplete: result.incomplete,
      rules: result.tallies.map(({ judgedCount, failingCount, dropped, alone, low, high }) =>
        [judgedCount, failingCount, dropped, alone, limit(low), limit(high)]),
    };
  });
}"""


def case(seed: int) -> dict[str, Any]:
    """A random policy on random heads, with scores that are often equal to each other and to limits."""
    rng = np.random.default_rng(seed)
    b = int(rng.integers(1, 8))
    views = rng.integers(0 if b > 1 else 1, 6, b)
    owner = np.repeat(np.arange(b), views)
    n = len(owner)
    azimuth = rng.choice([-180.0, -90, -45, 0, 37.5, 90, 120, 180, 240, 300], n)
    elevation = rng.choice([-30.0, 0, 15, 60], n)
    view = np.concatenate([np.arange(k) for k in views]) if n else np.zeros(0, int)
    heads = Heads(np.arange(b) * 3, owner, view, azimuth.astype(np.float32), elevation.astype(np.float32))

    def scores(rows: int, level: str) -> Column:
        values = rng.choice([0.1, 0.2, 0.3, 0.30000001192092896, 0.7, np.nan], rows).astype(np.float32)
        return Column(level, values, np.ones(rows, bool))

    columns = {
        "v.a": scores(n, "view"),
        "v.b": scores(n, "view"),
        "i.a": scores(b, "identity"),
        "i.b": scores(b, "identity"),
    }
    rules = [rule(rng, f"r{k}") for k in range(int(rng.integers(1, 5)))]
    document = {"name": "x", "rules": rules, "whole_identities": bool(rng.integers(2))}
    decisions = Decisions(*(rng.choice([0, 0, 0, 1, -1], rows).astype(np.int8) for rows in (b, n)))
    return {"document": document, "heads": heads, "columns": columns, "decisions": decisions}


def rule(rng: np.random.Generator, name: str) -> dict[str, Any]:
    column = str(rng.choice(["v.a", "v.b", "i.a", "i.b"]))
    made: dict[str, Any] = {"name": name, "score": column}
    kind = rng.choice(["min", "max", "both", "keep_top", "keep_bottom"])
    if kind == "both":
        made |= {"min": 0.2, "max": 0.3}
    else:
        made[str(kind)] = float(rng.choice([0.2, 0.3, 0.7]))
    if column.startswith("v."):
        if rng.integers(2):
            made["where"] = {"azimuth": [[-60, 60], [120, 240], [90, 90]][rng.integers(3)], "elevation": [-15, 60]}
        if rng.integers(2):
            made["drop"] = "identity"
            made |= [{}, {"max_failing": 1}, {"max_failing_share": 0.4}, {"min_passing": 2}][rng.integers(4)]
    return made


def for_browser(one: dict[str, Any]) -> dict[str, Any]:
    heads = one["heads"]

    def coded(column: Column) -> dict[str, Any]:
        found = encode(column, [])
        return {"level": found.level, **{k: getattr(found, k).tolist() for k in ("codes", "first", "last")}}

    def direction(values: np.ndarray) -> dict[str, Any]:
        return coded(Column("view", values, np.ones(len(values), bool)))

    return {
        "policy": one["document"],
        "heads": {
            "identities": len(heads.identity),
            "views": len(heads.view),
            "start": np.searchsorted(heads.owner, np.arange(len(heads.identity) + 1)).tolist(),
            "azimuth": direction(heads.azimuth),
            "elevation": direction(heads.elevation),
        },
        "columns": {name: coded(column) for name, column in one["columns"].items()},
        "decisions": {"identities": one["decisions"].identities.tolist(), "views": one["decisions"].views.tolist()},
    }


def expected(one: dict[str, Any]) -> dict[str, Any]:
    found = judge(parse_policy(one["document"]), one["heads"], one["columns"].__getitem__, one["decisions"])
    rules = []
    for r, tally in enumerate(found.tallies):
        failed = (found.views if tally.drops == "view" else found.identities).failed
        bit = np.uint64(1 << r)
        limits = [float(np.float32(x)) if np.isfinite(x) else None for x in (tally.low, tally.high)]
        counts = [tally.judged.sum(), tally.failing.sum(), (failed & bit > 0).sum(), (failed == bit).sum()]
        rules.append([*map(int, counts), *limits])
    return {
        "keepIdentity": found.keep_identity.astype(int).tolist(),
        "keepView": found.keep_view.astype(int).tolist(),
        "empty": int(found.empty.sum()),
        "incomplete": int(found.incomplete.sum()),
        "rules": rules,
    }


def test_both_judges_agree(page):
    cases = [case(seed) for seed in range(400)]
    answers = page.evaluate(JUDGE, [for_browser(one) for one in cases])
    for seed, (one, answer) in enumerate(zip(cases, answers, strict=True)):
        assert answer == expected(one), f"seed {seed}: {one['document']}"
    assert len({str(answer["rules"]) for answer in answers}) > 300


@pytest.mark.parametrize("score", ["v.a", "i.a"])
def test_the_vectors_hold_every_kind_of_rule(score):
    rules = [rule for seed in range(400) for rule in case(seed)["document"]["rules"] if rule["score"] == score]
    kinds = {key for rule in rules for key in rule}
    assert {"min", "max", "keep_top", "keep_bottom"} <= kinds
    if score == "v.a":
        assert {"where", "drop", "max_failing", "max_failing_share", "min_passing"} <= kinds
