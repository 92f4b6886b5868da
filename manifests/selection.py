"""Selections: which views and identities of a dataset are kept, and why the others are not.

A selection holds the rows of the score tables, sorted by identity and view; view -1 is the identity itself. The hash of its
file is its fingerprint. Reading one needs no scores.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.tables import as_array, parquet_bytes, parquet_file

FOLDER = "selections"

ROWS = pa.schema(
    [
        ("identity", pa.int64()),
        ("view", pa.int16()),
        ("keep", pa.bool_()),
        ("reason", pa.dictionary(pa.int32(), pa.string())),
        ("value", pa.float32()),
    ]
)
"""`reason` is null for rows that the rules keep; `value` is the score that failed a rule, or null."""

_META = b"spinset.selection"


def selection_file(name: str, file: str = "selection.parquet") -> str:
    return f"{FOLDER}/{name}/{file}"


@dataclass(frozen=True, eq=False)
class Selection:
    """A selection; `fingerprint` is the hash of its file."""

    name: str
    fingerprint: str
    dataset: str
    """The fingerprint of the dataset it was made for."""
    rows: pa.Table
    """The columns of ROWS, sorted by identity and view."""
    policy: dict[str, Any] | None = None
    """The document of the policy that made it."""
    summary: dict[str, Any] | None = None
    """Its counts and lineage, as `filters.select` writes them."""

    @cached_property
    def judged_views(self) -> Int64[np.ndarray, " n"]:
        """The `schema.view_codes` of all views that were judged, sorted."""
        return schema.view_codes(as_array(self.rows.column("identity")), as_array(self.rows.column("view")))[
            self._is_view
        ]

    @cached_property
    def keeps(self) -> Bool[np.ndarray, " n"]:
        """Whether each of `judged_views` is kept."""
        # DLPack has no packed bits.
        return (as_array(self.rows.column("keep").cast(pa.int8())) == 1)[self._is_view]

    @property
    def _is_view(self) -> Bool[np.ndarray, " m"]:
        return as_array(self.rows.column("view")) != schema.WHOLE


def write_selection(
    dataset: Dataset,
    name: str,
    rows: pa.Table,
    policy: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> str:
    """Commit a selection and return its fingerprint; the same arguments give the same bytes.

    The policy and the summary are in the metadata of selection.parquet, so that the three change together. policy.json and
    summary.json are copies for people to read, written afterwards.
    """
    assert rows.schema.equals(ROWS), rows.schema
    about = {"dataset": dataset.plan.fingerprint, "policy": policy, "summary": summary}
    data = parquet_bytes(rows, {_META: json.dumps(about, sort_keys=True)})
    fingerprint = hashlib.sha256(data).hexdigest()
    dataset.storage.write(selection_file(name), data)
    for copy, document in (("policy.json", policy), ("summary.json", summary)):
        if document is not None:
            sha256 = {"selection_sha256": fingerprint} if copy == "summary.json" else {}
            dataset.storage.write_json(selection_file(name, copy), {**document, **sha256}, sort_keys=True)
    return fingerprint


def read_selection(dataset: Dataset, name: str) -> Selection:
    """Read a selection; raises UserError if it does not exist or was made for another dataset."""
    file = selection_file(name)
    if not dataset.storage.exists(file):
        there = ", ".join(selections(dataset)) or "none"
        raise UserError(f"there is no selection {name!r} (selections: {there}); make it with spinset select")
    data = dataset.storage.read(file)
    rows = parquet_file(data).read()
    about: dict[str, Any] = json.loads((rows.schema.metadata or {}).get(_META, b"{}"))
    if about.get("dataset") != dataset.plan.fingerprint:
        raise UserError(f"{file} was made for another dataset; run spinset select again")
    fingerprint, plain = hashlib.sha256(data).hexdigest(), rows.replace_schema_metadata(None)
    return Selection(name, fingerprint, about["dataset"], plain, about.get("policy"), about.get("summary"))


def read_records(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The policy and the summary of every selection of a dataset by name, without their rows."""
    found = {}
    for name in selections(dataset):
        with dataset.storage.open(selection_file(name)) as file:
            about = json.loads((pq.read_schema(file).metadata or {}).get(_META, b"{}"))
        if about.get("dataset") == dataset.plan.fingerprint and about.get("summary"):
            found[name] = {"policy": about["policy"], "summary": about["summary"]}
    return found


def selections(dataset: Dataset) -> list[str]:
    """The names of the selections of a dataset."""
    return [name for name in dataset.storage.names(FOLDER) if dataset.storage.exists(selection_file(name))]
