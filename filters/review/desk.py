"""The data of the page: the dataset, its scores, one identity, the verdicts of people, and selections."""

import json
import threading
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from filters.decide import check_item
from filters.decisions import Decision, DecisionLog, now, place_decisions, read_decisions
from filters.policies import PRESETS
from filters.policy import Column, Heads, scores_of
from filters.review.columns import bits, coded_buffers, encode, pack
from filters.rules import Softmax, parse_policy, read_policy
from filters.select import column_of, heads_of, select_by
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.scores import (
    IDENTITY,
    VIEW,
    WHOLE,
    Scores,
    is_number,
    open_scores,
    scores_of_identity,
    tables,
)
from manifests.selection import read_records, read_selection

REASONS = ("janus", "floater", "hole", "cut", "fog", "blur", "identity", "duplicate", "other")
"""Codes of reasons, in the order of the keys 1 to 9."""


Text = Annotated[str, Field(max_length=200)]


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class Verdict:
    """A decision as the page sends it."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    identity: int
    view: int | None
    verdict: Literal["keep", "drop", "unsure", "clear"]
    reason: Text = ""
    undoes: Text = ""
    blind: bool = False


_VERDICTS = TypeAdapter(list[Verdict])


class Desk:
    """One dataset under review. Scores are read when they are asked for and then kept; methods may run in any thread.

    Attributes:
        heads: all identities and views.
        heads_buffer: the same for the browser, with the first row of each identity, view numbers unless they count from 0,
            and directions.
    """

    def __init__(self, dataset: Dataset, who: str):
        self.dataset, self.who = dataset, who
        self._lock = threading.Lock()
        self._logs: dict[str, DecisionLog] = {}
        self._open: dict[str, Scores] = {}
        tars = {str(shard): dataset.done(shard)["files"][".tar"] for shard in dataset.committed()}
        self._hashes = {shard: tar["sha256"] for shard, tar in tars.items()}
        self._bytes = sum(tar["size"] for tar in tars.values())
        if not (names := tables(dataset.storage)):
            raise UserError(f"{dataset.storage.url} has no scores; run spinset score {dataset.storage.url}")
        self._columns = {name: open_scores(dataset, name, self._hashes, []).columns for name in names}
        self.heads: Heads = heads_of(open_scores(dataset, names[0], self._hashes, ["azimuth", "elevation"]))
        self.heads_buffer = _heads_buffer(self.heads)

    def about(self) -> dict[str, Any]:
        """The dataset, its scores, presets, selections and decisions."""
        plan, heads = self.dataset.plan, self.heads
        return {
            "name": self.dataset.storage.url.rstrip("/").rsplit("/", 1)[-1],
            "fingerprint": plan.fingerprint,
            "source": plan.source.get("name", ""),
            "rig": plan.rig.get("id", ""),
            "members": [name for name in ("rgb", "normal") if name in plan.members],
            "identities": len(heads.identity),
            "views": len(heads.view),
            "bytes": self._bytes,
            "scores": self.scores(),
            "presets": presets(),
            "saved": self.saved(),
            "who": self.who,
            "reasons": REASONS,
            "decisions": self.decisions(),
        }

    def decisions(self) -> list[dict[str, Any]]:
        """All decisions, of this page and of others on the same dataset."""
        return [vars(decision) for decision in read_decisions(self.dataset.storage)[0]]

    def scores(self) -> list[dict[str, str]]:
        """The columns of scores with their level and meaning."""
        return [
            {"name": f"{table}.{name}", **{key: field.metadata[key.encode()].decode() for key in ("level", "about")}}
            for table, columns in self._columns.items()
            for name, field in columns.items()
            if is_number(field.type)
        ]

    def column_buffer(self, score: Any, exact: bool) -> bytes:
        """The codes of a score, which is written as in a policy."""
        column = self.column(_parse_score(score))
        splits = [
            float(limit)
            for policy in (*presets().values(), *self.saved().values())
            for rule in policy["rules"]
            if rule["score"] == score
            for limit in (rule.get("min"), rule.get("max"))
            if limit is not None
        ]
        coded = encode(column, splits, exact)
        return pack({"level": coded.level}, coded_buffers(coded))

    def column(self, score: str | Softmax) -> Column:
        """The numbers of a score."""
        names = (score,) if isinstance(score, str) else score.softmax
        with self._lock:
            for name in names:
                table, column = name.split(".")
                if name not in self._open:
                    self._open[name] = open_scores(self.dataset, table, self._hashes, [column])
        return scores_of(score, lambda name: column_of({name.split(".")[0]: self._open[name]}, name))

    def identity(self, identity: int) -> dict[str, Any]:
        """Everything that is known of an identity: its row, its planted defects, and all its scores."""
        check_item(self.dataset, (identity, None))
        shard = self.dataset.plan.shard_of(identity)
        (row,) = [r for r in self.dataset.identities(shard).to_pylist() if r["identity"] == identity]
        scores: dict[str, dict[str, list[float | None]]] = {VIEW: {}, IDENTITY: {}}
        for table, columns in self._columns.items():
            own = scores_of_identity(self.dataset, table, identity).to_pylist()
            for name, field in columns.items():
                if is_number(field.type):
                    level = field.metadata[b"level"].decode()
                    values = [_finite(r[name]) for r in own if (r["view"] == WHOLE) == (level == IDENTITY)]
                    scores[level][f"{table}.{name}"] = values
        run = self.dataset.done(shard)["run"]
        return {
            "identity": identity,
            "shard": shard,
            "row": {key: value for key, value in row.items() if key != "facts"},
            "made": {key: run.get(key) for key in ("host", "finished")},
            "source": self.dataset.plan.source,
            "view_scores": scores[VIEW],
            "scores": {name: values[0] for name, values in scores[IDENTITY].items()},
        }

    def decide(self, who: str, verdicts: Any) -> dict[str, Any]:
        """Record verdicts; those with a known id were recorded before, so that sending one twice is harmless."""
        asked = _checked(verdicts)
        with self._lock:
            known = {decision.id for decision in read_decisions(self.dataset.storage)[0]}
            new = [Decision(who=who, when=now(), **vars(one)) for one in asked if one.id not in known]
            place_decisions({decision.item: decision for decision in new}, self.heads)  # refuses unknown items
            if new:
                self._logs.setdefault(who, DecisionLog(self.dataset.storage, who)).append(new)
        return {"recorded": [one.id for one in asked]}

    def save(self, name: str, document: Any) -> dict[str, Any]:
        """Make a selection, as `spinset select` does with the same policy."""
        policy = parse_policy(document)
        parse_policy({**document, "name": name})  # selections have names of the same form
        made = select_by(self.dataset, policy, document, name)
        return {"name": name, "sha256": made.fingerprint, "summary": made.summary, "text": str(made)}

    def selection_buffer(self, name: str) -> bytes:
        """The identities and views that a selection keeps, and the reasons of the others, in the order of the heads."""
        found = read_selection(self.dataset, name)
        keep, view = (found.rows.column(key).to_numpy() for key in ("keep", "view"))
        reason = found.rows.column("reason").combine_chunks()
        codes = reason.indices.fill_null(0xFFFF).cast("uint16").to_numpy()
        whole = view == WHOLE
        texts = reason.dictionary.to_pylist()
        header = {"name": name, "policy": found.policy, "sha256": found.fingerprint, "reasons": texts}
        arrays = {
            "keepIdentity": bits(keep[whole]),
            "keepView": bits(keep[~whole]),
            "whyIdentity": codes[whole],
            "whyView": codes[~whole],
        }
        return pack(header, arrays)

    def saved(self) -> dict[str, dict[str, Any]]:
        """The policies of the selections of the dataset."""
        return {name: record["policy"] for name, record in read_records(self.dataset).items()}


def _heads_buffer(heads: Heads) -> bytes:
    start = np.searchsorted(heads.owner, np.arange(len(heads.identity) + 1)).astype(np.uint32)
    counted = np.arange(len(heads.view)) - start[heads.owner]
    arrays: dict[str, np.ndarray] = {"identity": heads.identity.astype(np.float64), "start": start}
    if not np.array_equal(counted, heads.view):
        arrays["view"] = heads.view.astype(np.uint16)
    for name in ("azimuth", "elevation"):
        values = getattr(heads, name)
        # Whole degrees divide no range of directions, so sectors of whole degrees are exact.
        coded = encode(Column(VIEW, values, np.ones(len(values), bool)), [float(x) for x in range(-180, 361)])
        arrays |= {f"{name}.{part}": array for part, array in coded_buffers(coded).items()}
    return pack({"identities": len(heads.identity), "views": len(heads.view)}, arrays)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """The preset policies, without the one of early rejection, whose views a dataset does not have."""
    return {name: read_policy(name)[1] for name in PRESETS if name != "early"}


def _parse_score(score: Any) -> str | Softmax:
    """A score as a policy writes it; raises UserError for anything else."""
    return parse_policy({"name": "x", "rules": [{"name": "x", "score": score, "min": 0}]}).rules[0].score


def _checked(verdicts: Any) -> list[Verdict]:
    try:
        return _VERDICTS.validate_json(json.dumps(verdicts))
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"verdict {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def _finite(value: Any) -> float | None:
    """A number for JSON; None where there is none."""
    return None if value is None or not np.isfinite(value) else float(value)
