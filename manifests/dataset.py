"""Reads a dataset: which shards are committed, and their tables; `manifests.reader` reads their members."""

import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from manifests import schema
from manifests.errors import damaged
from manifests.plan import Plan, read_plan
from manifests.shards import DONE, FOLDER, SUFFIXES
from manifests.storage import Storage
from manifests.tables import read_parquet

RECORD = {"fingerprint", "files", "views", "outcomes", "run"}
"""The fields of a shard's commit record."""


class Dataset:
    """A dataset on disk, complete or still growing; opening it reads dataset.json and one folder listing."""

    def __init__(self, url: str | Storage):
        self.storage = url if isinstance(url, Storage) else Storage(url)
        self.plan: Plan = read_plan(self.storage)

    def committed(self) -> list[int]:
        """The shards that are committed, in order; the folder is listed at every call, because workers may commit more."""
        found = (schema.shard_number(name) for name in self.storage.names(FOLDER) if name.endswith(DONE))
        return sorted(shard for shard in found if shard is not None and shard < self.plan.shards)

    def pending(self) -> list[int]:
        """The shards that are not committed yet."""
        return sorted(set(range(self.plan.shards)) - set(self.committed()))

    def done(self, shard: int) -> dict[str, Any]:
        """The commit record of a shard; raises DamagedData if it does not parse."""
        return self.parse(shard, self.storage.read(self.file(shard, DONE)))

    def records(self, shards: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The commit records of some shards, read many at a time.

        Raises:
            DamagedData: one does not parse, or has been taken away.
        """
        names = [self.file(shard, DONE) for shard in shards]
        for shard, name, data in zip(shards, names, self.storage.read_all(names), strict=True):
            if data is None:
                raise damaged(name, "is missing", self.storage.url)
            yield self.parse(shard, data)

    def parse(self, shard: int, data: bytes) -> dict[str, Any]:
        """The commit record of a shard from the bytes of its file; raises DamagedData if it does not parse."""
        name = self.file(shard, DONE)
        try:
            done = json.loads(data)
            lacking = RECORD - done.keys() or set(SUFFIXES) - done["files"].keys()
        except (ValueError, AttributeError) as error:
            raise damaged(name, f"is damaged ({type(error).__name__}: {error})", self.storage.url) from error
        if lacking:
            raise damaged(name, f"is damaged (it lacks {', '.join(sorted(lacking))})", self.storage.url)
        return done

    def views(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """The views table of a shard; `columns` may name struct fields such as "rgb.offset"."""
        return read_parquet(self.storage, self.file(shard, ".views.parquet"), columns)

    def identities(self, shard: int) -> pa.Table:
        """The identities table of a shard."""
        return read_parquet(self.storage, self.file(shard, ".identities.parquet"))

    @property
    def all_identities(self) -> pa.Table:
        """The identities of all committed shards."""
        return pa.concat_tables([self.identities(s) for s in self.committed()] or [schema.IDENTITIES.empty_table()])

    @property
    def all_views(self) -> pa.Table:
        """The views of all committed shards: schema.ALL_VIEWS, with the shard of each and hashes as hexadecimal text."""
        members = self.plan.member_names
        tables = [_united(self.views(shard), shard, members) for shard in self.committed()]
        return pa.concat_tables(tables or [schema.all_views_schema(members).empty_table()])

    def file(self, shard: int, suffix: str) -> str:
        """The name of one file of a shard inside the dataset."""
        return f"{PurePosixPath(FOLDER) / schema.shard_name(shard)}{suffix}"


def _united(views: pa.Table, shard: int, members: Sequence[str]) -> pa.Table:
    """The rows of one shard as rows of schema.ALL_VIEWS."""
    united = schema.all_views_schema(members)
    columns = {name: views.column(name) for name in views.column_names if name not in members}
    for name in members:
        entries = ({**entry, "sha256": entry["sha256"].hex()} for entry in views.column(name).to_pylist())
        columns[name] = pa.array(entries, united.field(name).type)
    columns["shard"] = pa.repeat(pa.scalar(shard, pa.int32()), len(views))
    return pa.table(columns, schema=united)
