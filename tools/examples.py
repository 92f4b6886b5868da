"""Reads a dataset of procedural heads with their recorded defects as training examples."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from filters.scorer import Subject, make_subject, read_pictures
from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError

HELD_OUT = 10
"""Every tenth identity is held out; the figures of the model cards are measured on these."""


@dataclass(frozen=True, eq=False)
class Example:
    """One head: its pictures, the facts its source records, and the defects that were generated on purpose."""

    identity: int
    subject: Subject
    facts: dict[str, Any]
    defects: frozenset[str]

    @property
    def is_held_out(self) -> bool:
        return self.identity % HELD_OUT == 0


def examples(dataset: Dataset) -> Iterator[Example]:
    """All kept heads of a dataset, one after the other; raises UserError if they are not procedural."""
    if dataset.plan.source["name"] != "procedural":
        raise UserError(
            f"{dataset.storage.url} holds {dataset.plan.source['name']} heads; only procedural ones are labelled"
        )
    for shard in dataset.committed():
        views = dataset.views(shard)
        of_identity = views.column("identity").to_numpy()
        for row in dataset.identities(shard).to_pylist():
            if row["outcome"] == schema.KEPT:
                own = views.filter(pa.array(of_identity == row["identity"]))
                subject = make_subject(row, own, {"rgb": read_pictures(dataset, shard, own, "rgb")})
                planted = frozenset(defect["kind"] for defect in row["defects"] or [])
                yield Example(row["identity"], subject, json.loads(row["facts"]), planted)
