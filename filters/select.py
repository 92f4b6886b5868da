"""Makes a selection from scores, a policy and decisions: rows with reasons, and a summary."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from filters.config import SelectConfig
from filters.decisions import Decision, Item, check_logs, place_decisions, read_decisions, standing
from filters.policy import Column, Decisions, Heads, Judgement, judge
from filters.rules import Policy, read_policy
from filters.summary import selection_summary
from manifests import scores as tables
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.scores import WHOLE, Lineage, Scores, open_scores, shard_hashes
from manifests.selection import ROWS, read_records, read_selection, write_selection
from manifests.tables import as_array


@dataclass(frozen=True)
class Selected:
    """A finished selection with its counts and lineage."""

    name: str
    fingerprint: str
    summary: dict[str, Any]

    def __str__(self) -> str:
        counts, views = self.summary["identities"], self.summary["views"]
        lines = [
            f"{self.name}: keeps {counts['kept']} of {counts['judged']} identities, {views['kept']} of {views['judged']} views"
        ]
        lines += [
            f"  {rule['why']}: {rule['failing']} of {rule['judged']} {rule['judges']} fail, "
            f"{rule['dropped']} {rule['drops']} dropped ({rule['alone']} by this rule alone)"
            for rule in self.summary["rules"]
        ]
        if counts["kept"] == 0:
            lines.append("  nothing is left: look at the rule that drops most, and at its scores")
        return "\n".join(lines)


def select(config: SelectConfig) -> Selected:
    """Judge all heads of a dataset and commit the selection; the same inputs give the same bytes.

    Raises:
        UserError: a bad policy, scores that are missing or older than the shards, a damaged log of decisions.
    """
    policy, document = read_policy(config.policy)
    return select_by(Dataset(config.out), policy, document, config.name or policy.name)


def select_by(dataset: Dataset, policy: Policy, document: dict[str, Any], name: str) -> Selected:
    """`select` with a policy that is read already."""
    judged = judge_dataset(dataset, policy)
    for other, record in read_records(dataset).items():
        check_logs(judged.logs, record["summary"]["decisions"]["logs"], other)
    summary = {
        **selection_summary(policy, judged.heads, judged.judgement, judged.decisions),
        "dataset": dataset.plan.fingerprint,
        "generated": _outcomes(dataset),
        "scores": {table: asdict(scores.lineage) for table, scores in judged.tables.items()},
    }
    summary["decisions"]["logs"] = {log: hashes[-1] for log, hashes in judged.logs.items() if hashes}
    fingerprint = write_selection(dataset, name, _rows(policy, judged), document, summary)
    return Selected(name, fingerprint, summary)


class JudgedDataset(NamedTuple):
    """All heads of a dataset with the outcome of a policy, and what it was computed from."""

    tables: dict[str, Scores]
    heads: Heads
    decisions: Decisions
    standing: dict[Item, Decision]
    """The decisions that count, by identity and view."""
    logs: dict[str, list[str]]
    """The hashes of the lines of each log of decisions."""
    judgement: Judgement


def judge_dataset(dataset: Dataset, policy: Policy) -> JudgedDataset:
    """Judge all heads by a policy and by the decisions of people; raises UserError as `select` does."""
    opened = open_tables(dataset, policy)
    heads = heads_of(next(iter(opened.values())))
    made, logs = read_decisions(dataset.storage)
    counted = standing(made)
    decisions = place_decisions(counted, heads)
    judgement = judge(policy, heads, partial(column_of, opened), decisions)
    return JudgedDataset(opened, heads, decisions, counted, logs, judgement)


def open_tables(dataset: Dataset, policy: Policy) -> dict[str, Scores]:
    """The score tables of a policy, with the columns its rules read, all of the same rows and of the lineage it requires.

    The directions of the views are read from the first of them.
    """
    hashes, directions, opened = shard_hashes(dataset), ["azimuth", "elevation"], {}
    for table, columns in policy.tables.items():
        opened[table] = open_scores(dataset, table, hashes, [*columns, *([] if opened else directions)])
        for name in columns:
            opened[table].level(name)  # raises for a name that is no score, as mesh.view
        opened[table] = _sharing_heads(opened[table], next(iter(opened.values())))
    check_requires(policy, {name: scores.lineage for name, scores in opened.items()})
    return opened


def _sharing_heads(scores: Scores, first: Scores) -> Scores:
    """A table with the identities and views of the first one in the place of its own, which take memory; they must be equal."""
    rows = scores.rows
    for at, key in enumerate(("identity", "view")):
        if not rows.column(key).equals(first.rows.column(key)):
            raise UserError(
                f"the scores of {first.table} and {scores.table} hold different heads; run spinset score again"
            )
        rows = rows.set_column(at, key, first.rows.column(key))
    return replace(scores, rows=rows)


def check_requires(policy: Policy, lineages: Mapping[str, Lineage]) -> None:
    """Raise UserError unless the scores have the lineage that a policy's limits were set for."""
    for name, pins in policy.requires.items():
        lineage = asdict(lineages[name])
        for key, value in pins.items():
            if lineage.get(key) != value:
                raise UserError(
                    f"the limits of policy {policy.name} belong to {name} with {key} {value!r}, and the scores were made with "
                    f"{lineage.get(key)!r}; copy the policy to a file and set its limits and its requires for these"
                )


def heads_of(scores: Scores) -> Heads:
    """The identities and views of a table's rows."""
    identity, view, azimuth, elevation = (scores.rows.column(f.name).to_numpy() for f in tables.ROW)
    is_view = view != WHOLE
    owner = np.cumsum(~is_view)[is_view] - 1
    return Heads(
        identity[~is_view], owner, view[is_view], azimuth[is_view].astype("f4"), elevation[is_view].astype("f4")
    )


def column_of(opened: dict[str, Scores], name: str) -> Column:
    """The scores of a name such as "arcface.mean_cosine"."""
    table, column = name.split(".")
    return Column(opened[table].level(column), *opened[table].numbers(column))


def _rows(policy: Policy, judged: JudgedDataset) -> pa.Table:
    """The rows of the selection, identities and views interleaved in order, with the first reason of each drop."""
    heads, decisions, judgement = judged.heads, judged.decisions, judged.judgement
    texts = [str(rule) for rule in policy.rules]
    empty, incomplete, dropped_with = (len(texts) + i for i in range(3))
    texts += ["no view of it is left", "one of its views was dropped", "its identity was dropped"]
    of_identity = _first_rule(judgement.identities.failed)
    of_identity[judgement.empty] = empty
    of_identity[judgement.incomplete] = incomplete
    of_view = _first_rule(judgement.views.failed)
    without_reason = (of_view < 0) & ~judgement.keep_view
    of_view[without_reason] = dropped_with
    # A decision is the reason of the rows that end up as it says.
    for owner in np.flatnonzero(decisions.identities * np.where(judgement.keep_identity, 1, -1) > 0):
        of_identity[owner] = len(texts)
        texts.append(_decided(judged.standing[int(heads.identity[owner]), None]))
    for row in np.flatnonzero(decisions.views * np.where(judgement.keep_view, 1, -1) > 0):
        of_view[row] = len(texts)
        texts.append(_decided(judged.standing[int(heads.identity[heads.owner[row]]), int(heads.view[row])]))
    rows = next(iter(judged.tables.values())).rows
    is_view = as_array(rows.column("view")) != WHOLE

    def interleaved(identities: np.ndarray, views: np.ndarray) -> np.ndarray:
        out = np.empty(len(is_view), views.dtype)
        out[~is_view], out[is_view] = identities, views
        return out

    code = interleaved(of_identity, of_view)
    reason = pa.DictionaryArray.from_arrays(pa.array(code, mask=code < 0), pa.array(texts, pa.string()))
    value = interleaved(judgement.identities.value, judgement.views.value)
    return pa.table(
        [
            rows.column("identity"),
            rows.column("view"),
            interleaved(judgement.keep_identity, judgement.keep_view),
            reason,
            pa.array(value, mask=np.isnan(value)),
        ],
        schema=ROWS,
    )


def _first_rule(failed: np.ndarray) -> np.ndarray:
    """The lowest set bit, -1 where there is none."""
    first, failing = np.full(len(failed), -1, np.int32), np.flatnonzero(failed)
    lowest = failed[failing] & (~failed[failing] + np.uint64(1))
    first[failing] = np.log2(lowest.astype(np.float64))
    return first


def _decided(decision: Decision) -> str:
    return f"decision: {decision.who} on {decision.when}: {decision.verdict}, {decision.reason}"


def _outcomes(dataset: Dataset) -> dict[str, int]:
    done = [record["outcomes"] for record in dataset.records(dataset.committed())]
    return {outcome: sum(d[outcome] for d in done) for outcome in done[0]}


def diff(dataset: Dataset, a: str, b: str) -> list[str]:
    """One line per row that only one of two selections keeps, with the reason of the one that drops it."""
    first, second = (read_selection(dataset, name).rows for name in (a, b))
    for key in ("identity", "view"):
        if not first.column(key).equals(second.column(key)):
            raise UserError(f"selections {a} and {b} are of different heads; run spinset select for both again")
    keep_a, keep_b = (rows.column("keep").to_numpy() for rows in (first, second))
    flips = np.flatnonzero(keep_a != keep_b)
    lines = []
    for i, one, two in zip(flips, first.take(flips).to_pylist(), second.take(flips).to_pylist(), strict=True):
        dropped, by = (two, b) if keep_a[i] else (one, a)
        what = f"identity {one['identity']}" + ("" if one["view"] == WHOLE else f" view {one['view']}")
        value = "" if dropped["value"] is None else f" ({dropped['value']:.4g})"
        lines.append(
            f"{what}: {'dropped' if keep_a[i] else 'kept'} in {b}; {by} drops it by {dropped['reason']}{value}"
        )
    return lines
