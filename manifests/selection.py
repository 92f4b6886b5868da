"""Selections: which views and identities of a dataset are used, and why the others are not.

A selection holds the rows of the score tables, sorted by identity and view; view -1 is the identity itself. Its hash is
its name for whoever must know that it is still the same. Reading one needs no scores.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.tables import as_array

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
    """The columns of ROWS, sorted by identity and view."""

    @cached_property
    def judged_views(self) -> Int64[np.ndarray, " n"]:
        """The `schema.view_codes` of all views that were judged, sorted."""
        return self._codes[as_array(self._column("view")) != schema.WHOLE]

    @cached_property
    def kept_views(self) -> Int64[np.ndarray, " k"]:
        """The `schema.view_codes` of the views that are kept, sorted."""
        # DLPack has no packed bits.
        keep = as_array(self._column("keep").cast(pa.int8())) == 1
        return self._codes[keep & (as_array(self._column("view")) != schema.WHOLE)]

    @cached_property
    def _codes(self) -> Int64[np.ndarray, " m"]:
        return schema.view_codes(as_array(self._column("identity")), as_array(self._column("view")))

    def _column(self, name: str) -> pa.Array:
        return self.rows.column(name).combine_chunks()


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
