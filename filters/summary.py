"""Counts of a judgement: by rule, by sets of rules that fail together, and by direction around the head."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from filters.policy import DROP, KEEP, Decisions, Heads, Judgement, Verdict
from filters.rules import Policy
from geometry.directions import wrapped
from manifests.scores import VIEW

AZIMUTH_STEP, ELEVATION_STEP = 30, 15

_PLURAL = {"view": "views", "identity": "identities"}


def selection_summary(policy: Policy, heads: Heads, judgement: Judgement, decisions: Decisions) -> dict[str, Any]:
    """The counts in summary.json; kept and dropped add up to judged, and every dropped row has one cause."""
    gone = ~judgement.keep_identity
    return {
        "policy": policy.name,
        "identities": {
            "judged": len(heads.identity),
            "kept": int((~gone).sum()),
            "dropped": int(gone.sum()),
            "without_views": int((gone & judgement.empty).sum()),
            "incomplete": int((gone & judgement.incomplete).sum()),
        },
        "views": {
            "judged": len(heads.view),
            "kept": int(judgement.keep_view.sum()),
            "dropped": int((~judgement.keep_view).sum()),
            "dropped_with_identity": int(gone[heads.owner].sum()),
        },
        "decisions": {
            level: {"keep": int((made == KEEP).sum()), "drop": int((made == DROP).sum())}
            for level, made in (("identities", decisions.identities), ("views", decisions.views))
        },
        "rules": rule_counts(policy, judgement),
        "failed_together": {
            "identities": _together(policy, judgement.identities),
            "views": _together(policy, judgement.views),
        },
        "sectors": _sectors(heads, judgement.views.failed == 0, judgement.keep_view),
    }


def rule_counts(policy: Policy, judgement: Judgement) -> list[dict[str, Any]]:
    """The counts of each rule: scores judged and failing, rows dropped, and rows that no other rule would have dropped."""
    rows = []
    for i, (rule, tally) in enumerate(zip(policy.rules, judgement.tallies, strict=True)):
        failed = (judgement.views if tally.drops == VIEW else judgement.identities).failed
        bit = np.uint64(1 << i)
        rows.append(
            {
                "name": rule.name,
                "why": str(rule),
                "judges": _PLURAL[tally.level],
                "judged": int(tally.judged.sum()),
                "failing": int(tally.failing.sum()),
                "drops": _PLURAL[tally.drops],
                "dropped": int((failed & bit > 0).sum()),
                "alone": int((failed == bit).sum()),
            }
        )
    return rows


def _together(policy: Policy, verdict: Verdict) -> list[dict[str, Any]]:
    """Number of rows that each set of rules drops together, largest first; every row that fails a rule is in one set."""
    sets, counts = np.unique(verdict.failed[verdict.failed > 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        {"rules": [r.name for i, r in enumerate(policy.rules) if int(sets[k]) >> i & 1], "count": int(counts[k])}
        for k in order
    ]


def _sectors(heads: Heads, passing: Bool[np.ndarray, " n"], kept: Bool[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Views, views that pass the rules on views, and views kept, for each cell of a grid of directions (degrees)."""
    turns = 360 // AZIMUTH_STEP
    column = np.round(heads.azimuth / AZIMUTH_STEP).astype(np.int16) % turns
    row = np.round(heads.elevation / ELEVATION_STEP).astype(np.int16) + 90 // ELEVATION_STEP
    cell = row * turns + column
    size = turns * (180 // ELEVATION_STEP + 1)
    total, passed, left = (np.bincount(c, minlength=size) for c in (cell, cell[passing], cell[kept]))
    return [
        {
            "azimuth": wrapped(int(c) % turns * AZIMUTH_STEP),
            "elevation": int(c) // turns * ELEVATION_STEP - 90,
            "views": int(total[c]),
            "passing": int(passed[c]),
            "kept": int(left[c]),
        }
        for c in np.flatnonzero(total)
    ]
