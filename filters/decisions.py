"""Decisions of people about heads: logs of a dataset, one per person and session, whose lines are chained by their hashes.

Several people may decide at the same time, because each session writes a log of its own. All logs together are the decisions
of the dataset, in the order of their times.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from filters.policy import DROP, KEEP, UNDECIDED, Decisions, Heads
from manifests.errors import UserError
from manifests.storage import Storage

FOLDER = "decisions"
VERDICTS = {"keep": KEEP, "drop": DROP, "unsure": UNDECIDED, "clear": UNDECIDED}

Item = tuple[int, int | None]
"""An identity, or one of its views."""


@dataclass(frozen=True)
class Decision:
    """The verdict of a person on an identity or on one of its views; the last one on each counts.

    Raises:
        UserError: an unknown verdict, or a time that is not written as by `now`.
    """

    identity: int
    view: int | None
    verdict: str
    """keep, drop, unsure, or clear, which removes earlier decisions."""
    reason: str
    who: str
    when: str
    """UTC, as 2026-11-30T12:00:00.000Z."""
    id: str = ""
    """Chosen by the writer, so that a decision that is sent twice is recorded once."""
    undoes: str = ""
    """The id of the decision that this one takes back."""
    blind: bool = False
    """A label that was given without sight of scores; it measures a policy and overrides nothing."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise UserError(f"verdict is {self.verdict!r}; it must be one of {', '.join(VERDICTS)}")
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", self.when):
            raise UserError(f"the time of a decision is {self.when!r}; it must be as 2026-11-30T12:00:00.000Z")
        if not self.who.strip():
            raise UserError("a decision needs the name of the person who made it")

    @property
    def item(self) -> Item:
        return self.identity, self.view


def now() -> str:
    """The time of a decision that is made now."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class DecisionLog:
    """The log of one session, to which only its writer adds lines; its file appears with the first decision."""

    def __init__(self, storage: Storage, who: str):
        name = re.sub(r"[^a-z0-9]+", "-", who.lower()).strip("-") or "someone"
        start = re.sub(r"\D", "", now())[:14]
        self.storage, self.file = storage, f"{FOLDER}/{name}-{start}-{secrets.token_hex(2)}.jsonl"
        self._text, self._previous = b"", None

    def append(self, decisions: Iterable[Decision]) -> None:
        """Record decisions; when this returns they are on disk."""
        text, previous = self._text, self._previous
        for decision in decisions:
            line = json.dumps({**asdict(decision), "previous": previous}, sort_keys=True).encode()
            text, previous = text + line + b"\n", _hash(line)
        # The whole file, because object stores cannot append; a rename leaves no half-written line on disks.
        self.storage.write(self.file, text)
        self._text, self._previous = text, previous


def read_decisions(storage: Storage) -> tuple[list[Decision], dict[str, list[str]]]:
    """All decisions of a dataset in the order of their times, and the hashes of the lines of each log.

    Raises:
        UserError: with the first line that was changed.
    """
    decisions, hashes = [], {}
    for name in storage.names(FOLDER):
        if name.endswith(".jsonl"):
            own, hashes[name] = _read_log(storage, name)
            decisions += own
    return sorted(decisions, key=lambda decision: decision.when), hashes


def check_logs(hashes: Mapping[str, list[str]], recorded: Mapping[str, str], selection: str) -> None:
    """Raise UserError unless the logs still hold every last line that a selection recorded."""
    for name, last in recorded.items():
        if last not in hashes.get(name, []):
            raise UserError(
                f"{FOLDER}/{name} lacks lines that it had when selection {selection} was made; restore it from a copy"
            )


def _read_log(storage: Storage, name: str) -> tuple[list[Decision], list[str]]:
    decisions, hashes = [], []
    for number, line in enumerate(storage.read(f"{FOLDER}/{name}").splitlines(), 1):
        try:
            fields = json.loads(line)
            linked = fields.pop("previous") == (hashes[-1] if hashes else None)
            decisions.append(Decision(**fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{FOLDER}/{name} line {number} does not read: {error}") from None
        if not linked:
            raise UserError(f"{FOLDER}/{name} line {number} does not follow line {number - 1}: the log was edited")
        hashes.append(_hash(line))
    return decisions, hashes


def standing(decisions: Iterable[Decision]) -> dict[Item, Decision]:
    """The decision that counts for each item: the last one, unless it clears; labels count for nothing."""
    last = {decision.item: decision for decision in decisions if not decision.blind}
    return {item: decision for item, decision in last.items() if decision.verdict != "clear"}


def undo(decisions: list[Decision], who: str) -> Decision:
    """The decision that takes back the last one of a person: what stood before it stands again.

    Raises:
        UserError: the person has made no decision that is left to take back.
    """
    undone = {decision.undoes for decision in decisions}
    own = [d for d in decisions if d.who == who and not d.undoes and d.id not in undone]
    if not own:
        raise UserError(f"{who} has no decision to undo")
    taken = own[-1]
    earlier = [d for d in decisions[: decisions.index(taken)] if d.item == taken.item and d.id not in undone]
    before = None if taken.blind else standing(earlier).get(taken.item)
    verdict, reason = (before.verdict, before.reason) if before else ("clear", "undone")
    return Decision(*taken.item, verdict, reason, who, now(), new_id(), undoes=taken.id, blind=taken.blind)


def new_id() -> str:
    """The id of a new decision."""
    return secrets.token_hex(8)


def place_decisions(counted: Mapping[Item, Decision], heads: Heads) -> Decisions:
    """The decisions that count as arrays over the heads.

    Raises:
        UserError: a decision is on an identity or a view that the scores do not hold.
    """
    placed = Decisions.none(heads)
    first_view = np.searchsorted(heads.owner, np.arange(len(heads.identity) + 1))
    for (identity, view), decision in counted.items():
        owner = int(np.searchsorted(heads.identity, identity))
        made = f"a decision of {decision.who} on {decision.when}"
        if owner == len(heads.identity) or heads.identity[owner] != identity:
            raise UserError(f"{made} is on identity {identity}, which the score tables do not hold")
        if view is None:
            placed.identities[owner] = VERDICTS[decision.verdict]
            continue
        rows = slice(first_view[owner], first_view[owner + 1])
        if view not in (views := heads.view[rows]):
            raise UserError(f"{made} is on view {view} of identity {identity}, which has no such view")
        placed.views[rows.start + int(np.flatnonzero(views == view)[0])] = VERDICTS[decision.verdict]
    return placed


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
