"""Counts what a policy did: by rule, alone and together, and where around the head."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from filters.policy import DROP, KEEP, Decisions, Heads, Judgement, Verdict
from filters.rules import Policy
from geometry.directions import wrapped
from manifests.scores import VIEW

AZIMUTH_STEP, ELEVATION_STEP = 30, 15

_PLURAL = {"view": "views", "identity": "identities"}


def summarise(policy: Policy, heads: Heads, judgement: Judgement, decisions: Decisions) -> dict[str, Any]:
    """What summary.json says of a judgement; kept and dropped add up to judged, and every dropped row has one cause."""
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
        "rules": _rules(policy, judgement),
        "failed_together": {
            "identities": _together(policy, judgement.identities),
            "views": _together(policy, judgement.views),
        },
        "sectors": _sectors(heads, judgement.views.failed == 0, judgement.keep_view),
    }


def _rules(policy: Policy, judgement: Judgement) -> list[dict[str, Any]]:
    """Of each rule: what it judged, what it drops, and what no other rule would have dropped."""
    rows = []
    for i, (rule, tally) in enumerate(zip(policy.rules, judgement.tallies, strict=True)):
        failed = (judgement.views if tally.drops == VIEW else judgement.identities).failed
        bit = np.uint64(1 << i)
        rows.append(
            {
                "name": rule.name,
                "why": str(rule),
                "judges": _PLURAL[tally.level],
                "judged": tally.judged,
                "failing": tally.failing,
                "drops": _PLURAL[tally.drops],
                "dropped": int((failed & bit > 0).sum()),
                "alone": int((failed == bit).sum()),
            }
        )
    return rows


def _together(policy: Policy, verdict: Verdict) -> list[dict[str, Any]]:
    """How many rows each set of rules drops together, most first; every row that fails anything is in one set."""
    sets, counts = np.unique(verdict.failed[verdict.failed > 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        {"rules": [r.name for i, r in enumerate(policy.rules) if int(sets[k]) >> i & 1], "count": int(counts[k])}
        for k in order
    ]


def _sectors(heads: Heads, passing: Bool[np.ndarray, " n"], kept: Bool[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Around each direction of a coarse grid: how many views pass the rules on views, and how many are kept."""
    turns = 360 // AZIMUTH_STEP
    column = np.round(heads.azimuth / AZIMUTH_STEP).astype(np.int64) % turns
    row = np.round(heads.elevation / ELEVATION_STEP).astype(np.int64) + 90 // ELEVATION_STEP
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
