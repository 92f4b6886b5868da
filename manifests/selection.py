"""Selections: which views and identities of a dataset are used, and why the others are not.

A selection holds the rows of the score tables, sorted by identity and view; view -1 is the identity itself. Its hash is
its name for whoever must know that it is still the same. Reading one needs no scores.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.dataset import Dataset
from manifests.errors import UserError

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
"""`reason` is null where a row is kept by the rules; `value` is the score that failed the rule, where one did."""

_META = b"spinset.selection"


def selection_file(name: str, file: str = "selection.parquet") -> str:
    return f"{FOLDER}/{name}/{file}"


@dataclass(frozen=True, eq=False)
class Selection:
    """One selection as it was read; `fingerprint` is the hash of its file."""

    name: str
    fingerprint: str
    dataset: str
    """The fingerprint of the dataset it was made for."""
    rows: pa.Table


def write_selection(dataset: Dataset, name: str, rows: pa.Table) -> str:
    """Commit selection.parquet, the same bytes for the same rows; returns its fingerprint."""
    assert rows.schema.equals(ROWS), rows.schema
    sink = io.BytesIO()
    about = json.dumps({"dataset": dataset.plan.fingerprint}, sort_keys=True)
    pq.write_table(rows.replace_schema_metadata({_META: about}), sink, compression="zstd", store_schema=True)
    data = sink.getvalue()
    dataset.storage.write(selection_file(name), data)
    return hashlib.sha256(data).hexdigest()


def read_selection(dataset: Dataset, name: str) -> Selection:
    """Read a selection; raises ValueError if there is none of this name or it was made for another dataset."""
    file = selection_file(name)
    if not dataset.storage.exists(file):
        there = ", ".join(selections(dataset)) or "none"
        raise UserError(f"there is no selection {name!r} (selections: {there}); make it with spinset select")
    data = dataset.storage.read(file)
    rows = pq.ParquetFile(pa.BufferReader(data)).read()
    about: dict[str, Any] = json.loads((rows.schema.metadata or {}).get(_META, b"{}"))
    if about.get("dataset") != dataset.plan.fingerprint:
        raise UserError(f"{file} was made for another dataset; make it anew with spinset select")
    return Selection(name, hashlib.sha256(data).hexdigest(), about["dataset"], rows.replace_schema_metadata(None))


def selections(dataset: Dataset) -> list[str]:
    """The names of the selections there are."""
    storage = dataset.storage
    folder = storage.path(FOLDER)
    if not storage.fs.isdir(folder):
        return []
    names = sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in storage.fs.ls(folder, detail=False))
    return [name for name in names if storage.exists(selection_file(name))]
