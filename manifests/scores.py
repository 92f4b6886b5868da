"""Score tables: numbers about views and identities, in files of their own.

A table is made in parts, one per shard (scores/<table>/heads-NNNNNN.parquet), each committed by one rename. Once every
part is there they are gathered into scores/<table>.parquet, the one file that selections and people read. All tables
of a dataset hold the same rows, sorted by identity and view; view WHOLE is the row of the identity itself. Null means
that a column does not speak of this row, NaN that the number could not be had.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import json_differences
from manifests.schema import WHOLE
from manifests.storage import Storage
from manifests.tables import as_array, open_parquet, parquet_bytes, reading

FOLDER = "scores"
SCORE_AGAIN = "spinset score {} --replace"
"""The command that makes a damaged table again."""

VIEW, IDENTITY = "view", "identity"

ROW = (
    pa.field("identity", pa.int64()),
    pa.field("view", pa.int16()),
    pa.field("azimuth", pa.float32()),
    pa.field("elevation", pa.float32()),
)

UNREADABLE = "unreadable"
"""The key of a table's metadata that holds the reasons for NaN scores, by identity."""

_META = b"spinset.scores"


class ScoresMismatch(UserError):
    """A table exists that other weights, other settings or another version made."""


@dataclass(frozen=True)
class Lineage:
    """The origin of a table; equal lineages give equal numbers on equal shards."""

    scorer: str
    version: int
    weights_sha256: str | None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Lineage":
        """The lineage in the metadata of a table."""
        return cls(*(about[one.name] for one in fields(cls)))


def column(name: str, level: str, about: str, type: pa.DataType | None = None) -> pa.Field:
    """A column of numbers about views or identities, with its description; float32 by default."""
    assert level in (VIEW, IDENTITY), level
    return pa.field(name, type or pa.float32(), metadata={"level": level, "about": about})


def table_schema(columns: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([*ROW, *columns])


def part_file(table: str, shard: int) -> str:
    return f"{FOLDER}/{table}/{schema.shard_name(shard)}.parquet"


def whole_file(table: str) -> str:
    return f"{FOLDER}/{table}.parquet"


def write_part(
    dataset: Dataset,
    table: str,
    shard: int,
    rows: pa.Table,
    lineage: Lineage,
    tar_sha256: str,
    unreadable: Mapping[int, str] | None = None,
) -> None:
    """Commit the scores of one shard, replacing older ones.

    Args:
        unreadable: by identity, why its scores are NaN where its pictures do not decode.
    """
    about = {**asdict(lineage), "dataset": dataset.plan.fingerprint, "tar_sha256": tar_sha256}
    _write(dataset.storage, part_file(table, shard), rows, about, unreadable)


def current_part(
    dataset: Dataset, table: str, shard: int, lineage: Lineage, replace: bool = False
) -> dict[str, Any] | None:
    """The metadata of a shard's part if it exists and was made by this lineage from the shard as it is.

    Raises:
        ScoresMismatch: another lineage made it, and it must not be replaced.
    """
    file = part_file(table, shard)
    if not dataset.storage.exists(file):
        return None
    about = json.loads(open_parquet(dataset.storage, file, SCORE_AGAIN).schema_arrow.metadata[_META])
    there = Lineage.of(about)
    if there != lineage or about["dataset"] != dataset.plan.fingerprint:
        if replace:
            return None
        raise ScoresMismatch(
            f"{file} was made by {_difference(there, lineage)}; give the new table another name, or --replace the old one"
        )
    return about if about["tar_sha256"] == tar_sha256(dataset, shard) else None


def tar_sha256(dataset: Dataset, shard: int) -> str:
    """The hash of a shard's tar in its commit record."""
    return dataset.done(shard)["files"][".tar"]["sha256"]


class Gathered(NamedTuple):
    """The outcome of gathering a table."""

    lacking: list[int]
    """Shards whose part is missing or out of date; if there are any, the whole table was not written."""
    unreadable: dict[int, str]
    """Why the scores of an identity are NaN, for those with a picture that does not decode."""


def gather(dataset: Dataset, table: str, lineage: Lineage) -> Gathered:
    """Write the whole table from its parts, without embeddings; nothing is written while the part of a shard is missing."""
    found = Gathered([], {})
    parts = []
    for shard in dataset.committed():
        if (about := current_part(dataset, table, shard, lineage)) is None:
            found.lacking.append(shard)
        elif not found.lacking:
            found.unreadable.update((int(k), reason) for k, reason in about.get(UNREADABLE, {}).items())
            parts.append(read_part(dataset, table, shard, numbers_only=True))
    if parts and not found.lacking:
        write_whole(dataset, table, pa.concat_tables(parts), lineage, found.unreadable)
    return found


def write_whole(
    dataset: Dataset, table: str, rows: pa.Table, lineage: Lineage, unreadable: Mapping[int, str] | None = None
) -> None:
    """Commit a whole table of all committed shards; `unreadable` as in `write_part`."""
    about = {**asdict(lineage), "dataset": dataset.plan.fingerprint, "shards": shard_hashes(dataset)}
    rows = rows.sort_by([("identity", "ascending"), ("view", "ascending")])
    _write(dataset.storage, whole_file(table), rows, about, unreadable)


def read_part(dataset: Dataset, table: str, shard: int, numbers_only: bool = False) -> pa.Table:
    """The scores of one shard, embeddings included unless only numbers are asked for."""
    parquet = open_parquet(dataset.storage, part_file(table, shard), SCORE_AGAIN)
    names = [f.name for f in parquet.schema_arrow if not (numbers_only and pa.types.is_nested(f.type))]
    with reading(dataset.storage, part_file(table, shard), SCORE_AGAIN):
        return parquet.read(columns=names).replace_schema_metadata(None)


def scores_of_identity(dataset: Dataset, table: str, identity: int) -> pa.Table:
    """The rows of one identity in a whole table: all columns of numbers, read from the row groups that may hold it."""
    file = whole_file(table)
    parquet = open_parquet(dataset.storage, file, SCORE_AGAIN)
    names = [f.name for f in parquet.schema_arrow if is_number(f.type)]
    with reading(dataset.storage, file, SCORE_AGAIN):
        groups = [
            g for g in range(parquet.num_row_groups) if _may_hold(parquet.metadata.row_group(g).column(0), identity)
        ]
        rows = parquet.read_row_groups(groups, names)
    return rows.filter(rows.column("identity").to_numpy() == identity)


def _may_hold(column: Any, number: int) -> bool:
    """Whether the statistics of a column in a row group allow a number."""
    known = column.statistics
    return known is None or not known.has_min_max or known.min <= number <= known.max


def tables(storage: Storage) -> list[str]:
    """The names of the whole tables of a dataset."""
    return [name.removesuffix(".parquet") for name in storage.names(FOLDER) if name.endswith(".parquet")]


@dataclass(frozen=True, eq=False)
class Scores:
    """A whole table: its lineage, all of its columns by name, and the rows of the requested columns."""

    table: str
    lineage: Lineage
    columns: dict[str, pa.Field]
    rows: pa.Table

    def level(self, name: str) -> str:
        """Whether a column holds scores of views or of identities; raises UserError for a column that is not a score."""
        if name not in self.columns or not is_number(self.columns[name].type):
            there = ", ".join(field.name for field in self.columns.values() if is_number(field.type))
            raise UserError(f"{self.table}.{name} is not a score; the scores of {self.table} are {there}")
        return self.columns[name].metadata[b"level"].decode()

    def numbers(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The values of a column at the rows of its level, and a mask of those that are not null (NaN is a value)."""
        is_view = as_array(self.rows.column("view")) != WHOLE
        own = self.rows.column(name).filter(pa.array(is_view == (self.level(name) == VIEW))).cast(pa.float32())
        # DLPack has neither nulls nor packed bits.
        valid = as_array(own.is_valid().cast(pa.int8())) == 1 if own.null_count else np.ones(len(own), bool)
        return as_array(own.fill_null(np.nan)), valid


def is_number(type: pa.DataType) -> bool:
    """Whether a column of this type holds scores; embeddings are lists."""
    return pa.types.is_floating(type) or pa.types.is_integer(type) or pa.types.is_boolean(type)


def shard_hashes(dataset: Dataset) -> dict[str, str]:
    """The hash of every committed shard's tar, which a whole table records to show that it is up to date."""
    shards = dataset.committed()
    return {
        str(shard): done["files"][".tar"]["sha256"] for shard, done in zip(shards, dataset.records(shards), strict=True)
    }


def open_scores(dataset: Dataset, table: str, hashes: dict[str, str], columns: Sequence[str] | None = None) -> Scores:
    """Read identity, view and some columns of a whole table (all by default), and check that it fits the dataset's hashes.

    Raises:
        UserError: there is no such table or column, or the table does not fit the shards.
    """
    file = whole_file(table)
    if not dataset.storage.exists(file):
        there = ", ".join(tables(dataset.storage)) or "none"
        raise UserError(f"there are no scores of {table!r} (tables: {there}); run spinset score for it")
    parquet = open_parquet(dataset.storage, file, SCORE_AGAIN)
    about = json.loads(parquet.schema_arrow.metadata[_META])
    rows = [f.name for f in ROW]
    known = {f.name: f for f in parquet.schema_arrow if f.name not in rows}
    for name in columns or ():
        if name not in known and name not in rows:
            raise UserError(f"the scores of {table} have no column {name!r}; they have {', '.join(known)}")
    _check_shards(file, about, dataset.plan.fingerprint, hashes)
    wanted = [*rows, *known] if columns is None else ["identity", "view", *columns]
    with reading(dataset.storage, file, SCORE_AGAIN):
        table_rows = parquet.read(columns=wanted)
    return Scores(table, Lineage.of(about), known, table_rows)


def _check_shards(file: str, about: dict[str, Any], fingerprint: str, hashes: dict[str, str]) -> None:
    seen, again = about["shards"], "run spinset score again"
    if about["dataset"] != fingerprint:
        raise UserError(f"{file} belongs to a dataset with another plan; {again}")
    if missing := [shard for shard in hashes if shard not in seen]:
        raise UserError(f"{file} lacks shards {some_of(missing)}, which were made since; {again}")
    if gone := [shard for shard in seen if shard not in hashes]:
        raise UserError(f"{file} has scores of shards {some_of(gone)}, which no longer exist; {again}")
    if older := [shard for shard in hashes if seen[shard] != hashes[shard]]:
        raise UserError(f"{file} is older than shards {some_of(older)}; {again}")


def some_of(numbers: Sequence[int | str]) -> str:
    """The first five numbers of a list, and how many more there are, for a message."""
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def _difference(there: Lineage, asked: Lineage) -> str:
    changed = json_differences(asdict(there), asdict(asked))
    return ", ".join(f"{at} {a} (now {b})" for at, a, b in changed) or "another plan"


def _write(
    storage: Storage, file: str, rows: pa.Table, about: dict[str, Any], unreadable: Mapping[int, str] | None
) -> None:
    if unreadable:
        about = {**about, UNREADABLE: {str(identity): reason for identity, reason in unreadable.items()}}
    storage.write(file, parquet_bytes(rows, {_META: json.dumps(about, sort_keys=True)}, row_group_size=1 << 17))
