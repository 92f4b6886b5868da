"""Turns what a scorer says of one identity into rows of its table: the identity's own row, then its views."""

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from filters.scorer import Columns, Scorer
from manifests.scores import VIEW, WHOLE, table_schema


def wanted_views(scorer: Scorer, views: pa.Table) -> Bool[np.ndarray, " v"]:
    """Which of an identity's views a scorer reads."""
    return scorer.wants(views.column("azimuth").to_numpy(), views.column("elevation").to_numpy())


def identity_rows(scorer: Scorer, identity: int, views: pa.Table, numbers: Columns | None) -> pa.Table:
    """The rows of one identity; without numbers they are NaN. Columns are null where they do not apply."""
    count = len(views) + 1
    is_own = np.arange(count) == 0
    wanted = np.concatenate([[False], wanted_views(scorer, views)])
    above = [views.column(name).combine_chunks() for name in ("azimuth", "elevation")]
    columns = [
        pa.array(np.full(count, identity)),
        pa.array(np.concatenate([[WHOLE], views.column("view").to_numpy()]).astype(np.int16)),
        *(pa.concat_arrays([pa.nulls(1, values.type), values]) for values in above),
    ]
    for field in scorer.columns:
        where = wanted if field.metadata[b"level"] == VIEW.encode() else is_own
        given = np.nan if numbers is None else numbers[field.name]
        spread = _vectors if pa.types.is_fixed_size_list(field.type) else _numbers
        columns.append(spread(field, where, np.asarray(given)))
    return pa.table(columns, schema=table_schema(scorer.columns))


def _numbers(field: pa.Field, where: Bool[np.ndarray, " r"], given: np.ndarray) -> pa.Array:
    """The numbers where they belong, null elsewhere."""
    assert given.ndim == 0 or len(given) == where.sum(), f"{field.name}: {len(given)} numbers for {where.sum()} rows"
    values = np.zeros(len(where), np.float32)
    values[where] = given
    return pa.array(values, field.type, mask=~where, from_pandas=False)


def _vectors(field: pa.Field, where: Bool[np.ndarray, " r"], given: Float[np.ndarray, "..."]) -> pa.Array:
    """The vectors where they belong, null elsewhere and where they are NaN."""
    values = np.full((len(where), field.type.list_size), np.nan, np.float16)
    values[where] = given
    missing = np.isnan(values).any(axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=field.type, mask=pa.array(missing))
