"""The columns about views that tools of curation show beside pictures: directions, defects, scores, outcomes of selections."""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import Subset
from manifests.scores import IDENTITY, Scores, is_number, open_scores, shard_hashes, tables, whole_file
from manifests.selection import Selection, selection_file, selections
from manifests.subset import KeptIdentity, fitting_selection
from manifests.tables import as_array

_PLACE = (
    pa.field("id", pa.string()),
    pa.field("identity", pa.int64()),
    pa.field("view", pa.int64()),
    pa.field("azimuth", pa.float64()),
    pa.field("elevation", pa.float64()),
    pa.field("defects", pa.string()),
)


def view_name(view: int) -> str:
    """The name of a view among those of its identity."""
    return f"v{view:03d}"


def column_hashes(dataset: Dataset) -> dict[str, str]:
    """The hashes of the files that columns are read from, by name: all whole tables of scores and all selections."""
    files = [*map(whole_file, tables(dataset.storage)), *map(selection_file, selections(dataset))]
    return {name: hashlib.sha256(dataset.storage.read(name)).hexdigest() for name in files}


class ViewColumns:
    """One row per view: `id` such as 0000042/v063, its direction in degrees, and what is known of it.

    `defects` names the planted defects of the identity, is "none" for a sound one, and null where the source records none.
    `TABLE_COLUMN` is a score as a number; those of identities are repeated on all of their views, and null means that the score
    does not speak of the view. `selection_NAME` is "kept", or why that selection dropped the view.

    Raises:
        UserError: scores or a selection are older than the shards, or two columns would have the same name.
    """

    def __init__(self, dataset: Dataset, subset: Subset):
        hashes = shard_hashes(dataset)
        opened = [open_scores(dataset, table, hashes) for table in tables(dataset.storage)]
        chosen = [fitting_selection(dataset, name, subset.index) for name in selections(dataset)]
        self._scores = [(scores, _SortedRows(scores.rows)) for scores in opened]
        self._selections = [_SortedRows(selection.rows) for selection in chosen]
        levels = [(_score_name(scores, name), scores.level(name)) for scores in opened for name in _numbers(scores)]
        self.levels = dict(levels)
        """Whether a score is of views or of identities, by its name."""
        texts = [_selection_name(selection) for selection in chosen]
        self.schema = pa.schema(
            [*_PLACE, *((name, pa.float64()) for name, _ in levels), *((name, pa.string()) for name in texts)]
        )
        if double := next((n for n in self.schema.names if self.schema.names.count(n) > 1), None):
            raise UserError(
                f"two scores or selections of {dataset.storage.url} would both be called {double}; rename one"
            )

    def of(self, identity: KeptIdentity) -> pa.Table:
        """The rows of the kept views of an identity."""
        view = as_array(identity.views.column("view").combine_chunks())
        planted = identity.row["defects"]
        defects = None if planted is None else ", ".join(defect["kind"] for defect in planted) or "none"
        columns: list[Any] = [
            [f"{identity.number:07d}/{view_name(v)}" for v in view.tolist()],
            *(identity.views.column(name) for name in ("identity", "view", "azimuth", "elevation")),
            [defects] * len(view),
        ]
        for scores, rows in self._scores:
            own, views = rows.find(identity.number, view)
            for name in _numbers(scores):
                at = np.full(len(view), own) if scores.level(name) == IDENTITY else views
                columns.append(rows.rows.column(name).take(pa.array(at)))
        columns += [_outcomes(rows, identity.number, view) for rows in self._selections]
        arrays = [
            column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
            for column, field in zip(columns, self.schema, strict=True)
        ]
        return pa.table(arrays, schema=self.schema)

    def records(self, identity: KeptIdentity) -> list[dict[str, Any]]:
        """The rows for JSON, each without what is null or NaN."""
        return [
            {k: v for k, v in row.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
            for row in self.of(identity).to_pylist()
        ]


class CuratedViews:
    """A format that knows these columns; the pictures of an identity are in a folder of its own below `folder`."""

    folder: ClassVar[str]

    def __init__(self, dataset: Dataset, subset: Subset, dest: Path):
        self.dataset, self.subset, self.columns = dataset, subset, ViewColumns(dataset, subset)
        self.picture = dataset.plan.members["rgb"].rpartition(".")[2]

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        (pictures,) = identity.members("rgb")
        for view, data in zip(identity.views.column("view").to_pylist(), pictures, strict=True):
            yield f"{self.folder}/{identity.number:07d}/{view_name(view)}.{self.picture}", data


class _SortedRows:
    """Rows sorted by identity and view, in which the first row of an identity is its own."""

    def __init__(self, rows: pa.Table):
        self.rows = rows.combine_chunks()
        self.identity, self.view = (as_array(self.rows.column(name).combine_chunks()) for name in ("identity", "view"))

    def find(self, identity: int, view: np.ndarray) -> tuple[int, Int64[np.ndarray, " n"]]:
        """The row of an identity, and those of some of its views."""
        first, end = np.searchsorted(self.identity, [identity, identity + 1])
        found = first + np.searchsorted(self.view[first:end], view)
        assert found.max(initial=0) < end and (self.view[found] == view).all(), identity
        return int(first), found


def _numbers(scores: Scores) -> list[str]:
    return [name for name, field in scores.columns.items() if is_number(field.type)]


def _score_name(scores: Scores, name: str) -> str:
    """Without dots, which databases read as a field of a field."""
    return re.sub(r"\W", "_", f"{scores.table}_{name}")


def _selection_name(selection: Selection) -> str:
    return re.sub(r"\W", "_", f"selection_{selection.name}")


def _outcomes(rows: _SortedRows, identity: int, view: np.ndarray) -> list[str]:
    own, views = rows.find(identity, view)
    head, *each = rows.rows.select(["keep", "reason"]).take(pa.array([own, *views.tolist()])).to_pylist()
    if not head["keep"]:
        return [f"identity dropped: {head['reason']}"] * len(view)
    return [
        f"{'kept' if row['keep'] else 'dropped'}{': ' if row['reason'] else ''}{row['reason'] or ''}" for row in each
    ]
