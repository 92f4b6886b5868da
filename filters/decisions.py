"""Decisions of people against the rules: an append-only log whose lines are chained by their hashes."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from filters.policy import DROP, KEEP, UNDECIDED, Decisions, Heads
from manifests.errors import UserError
from manifests.storage import Storage

VERDICTS = {"keep": KEEP, "drop": DROP, "clear": UNDECIDED}


@dataclass(frozen=True)
class Decision:
    """The verdict of a person on an identity or on one of its views; the last one on each counts."""

    identity: int
    view: int | None
    verdict: str
    """keep, drop, or clear, which removes earlier decisions."""
    reason: str
    who: str
    when: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise UserError(f"verdict is {self.verdict!r}; it must be one of {', '.join(VERDICTS)}")


def log_file(selection: str) -> str:
    return f"selections/{selection}/decisions.jsonl"


def append_decision(storage: Storage, selection: str, decision: Decision) -> None:
    """Add a line to the log of a selection; the lines before are checked first."""
    read_decisions(storage, selection)
    text = storage.read(log_file(selection)) if storage.exists(log_file(selection)) else b""
    line = {**asdict(decision), "previous": _hash(text.splitlines()[-1]) if text else None}
    storage.write(log_file(selection), text + json.dumps(line, sort_keys=True).encode() + b"\n")


def read_decisions(storage: Storage, selection: str) -> list[Decision]:
    """All decisions in order, none without a log; raises UserError with the first line that was changed."""
    if not storage.exists(log_file(selection)):
        return []
    decisions, previous = [], None
    for number, line in enumerate(storage.read(log_file(selection)).splitlines(), 1):
        try:
            fields = json.loads(line)
            linked = fields.pop("previous") == previous
            decisions.append(Decision(**fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{log_file(selection)} line {number} does not read: {error}") from None
        if not linked:
            raise UserError(
                f"{log_file(selection)} line {number} does not follow line {number - 1}: the log was edited"
            )
        previous = _hash(line)
    return decisions


def place_decisions(
    decisions: list[Decision], heads: Heads
) -> tuple[Decisions, dict[tuple[int, int | None], Decision]]:
    """The decisions that count: as arrays over the heads, and by identity and view.

    Raises:
        UserError: a decision is on an identity or a view that the scores do not hold.
    """
    placed, last = Decisions.none(heads), {}
    first_view = np.searchsorted(heads.owner, np.arange(len(heads.identity) + 1))
    for number, decision in enumerate(decisions, 1):
        owner = int(np.searchsorted(heads.identity, decision.identity))
        if owner == len(heads.identity) or heads.identity[owner] != decision.identity:
            raise UserError(f"decision {number} is on identity {decision.identity}, which the score tables do not hold")
        if decision.view is None:
            placed.identities[owner] = VERDICTS[decision.verdict]
        else:
            rows = slice(first_view[owner], first_view[owner + 1])
            if decision.view not in (views := heads.view[rows]):
                raise UserError(
                    f"decision {number} is on view {decision.view} of identity {decision.identity}, which has no such view"
                )
            placed.views[rows.start + int(np.flatnonzero(views == decision.view)[0])] = VERDICTS[decision.verdict]
        last[decision.identity, decision.view] = decision
    return placed, {at: decision for at, decision in last.items() if decision.verdict != "clear"}


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
