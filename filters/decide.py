"""The command `decide`: records verdicts on items of a dataset, lists them, and takes the last one back."""

import getpass
import os

from filters.config import DecideConfig
from filters.decisions import Decision, DecisionLog, Item, new_id, now, read_decisions, standing, undo
from manifests.dataset import Dataset
from manifests.errors import UserError


def decide(config: DecideConfig) -> list[str]:
    """Do what the options say; returns the lines that tell about it."""
    dataset = Dataset(config.out)
    decisions, _ = read_decisions(dataset.storage)
    if config.list:
        return list_decisions(decisions)
    who = config.who or user_name()
    if config.undo:
        made = [undo(decisions, who)]
    else:
        made = [
            Decision(*parse_item(item), verdict, config.reason, who, now(), new_id())
            for verdict, items in config.items.items()
            for item in items
        ]
    for decision in made:
        check_item(dataset, decision.item)
    DecisionLog(dataset.storage, who).append(made)
    return [describe(decision) for decision in made]


def list_decisions(decisions: list[Decision]) -> list[str]:
    """One line per decision, those that no longer count marked."""
    counted = set(map(id, standing(decisions).values()))
    notes = [" (label)" if d.blind else "" if id(d) in counted else " (no longer counts)" for d in decisions]
    lines = [f"{d.when}  {describe(d)}{note}" for d, note in zip(decisions, notes, strict=True)]
    return lines or ["no decisions"]


def describe(decision: Decision) -> str:
    """One line about a decision."""
    reason = f", {decision.reason}" if decision.reason else ""
    return f"{write_item(decision.item)}: {decision.verdict}{reason} ({decision.who})"


def parse_item(text: str) -> Item:
    """17 or 42/v063 as an identity and perhaps a view."""
    identity, _, view = text.partition("/v")
    return int(identity), int(view) if view else None


def write_item(item: Item) -> str:
    """The reverse of `parse_item`."""
    identity, view = item
    return str(identity) if view is None else f"{identity}/v{view:03d}"


def check_item(dataset: Dataset, item: Item) -> None:
    """Raise UserError unless an item is one of the dataset's, in a shard that is finished."""
    identity, view = item
    try:
        shard = dataset.plan.shard_of(identity)
    except KeyError:
        shard = -1
    if shard not in dataset.committed() or identity not in dataset.plan.identities_of(shard):
        raise UserError(f"{write_item(item)}: {dataset.storage.url} holds no identity {identity}")
    rows = dataset.views(shard, ["identity", "view"])
    views = rows.filter(rows.column("identity").to_numpy() == identity).column("view").to_pylist()
    if view is not None and view not in views:
        there = f"0 to {max(views)}" if views else "none"
        raise UserError(f"{write_item(item)}: identity {identity} has no view {view} (views: {there})")


def user_name() -> str:
    """The name of the user on this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"user-{os.getuid()}"
