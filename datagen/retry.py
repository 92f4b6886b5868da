"""Makes failed heads again, once the cause of their failures is mended, and leaves all others as they are."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datagen.config import GenerateConfig, RemakeConfig
from datagen.generate import GenerateWorker
from datagen.heads import Rejection
from datagen.remake import make_again, open_beside, open_generated
from jobs.ledger import Ledger
from jobs.units import Event, Unit
from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError, damaged
from manifests.plan import Plan
from manifests.reader import read_members
from manifests.shards import DONE, SUFFIXES, ShardWriter, member_name
from manifests.storage import Storage

STAGING = "retry"
"""The folder of the dataset in which shards are made again."""


@dataclass(frozen=True)
class Retried:
    """The result of making one failed head again."""

    identity: int
    seed: int
    outcome: str
    stage: str | None
    reason: str | None

    def __str__(self) -> str:
        why = "" if self.outcome == schema.KEPT else f" at stage {self.stage}: {self.reason}"
        again = " again" if self.outcome == schema.FAILED else ""
        return f"identity {self.identity} (seed {self.seed}): {self.outcome}{again}{why}"


def retry(config: RemakeConfig, rejection: Rejection | None = None) -> list[Retried]:
    """Make the failed heads of the committed shards again, and return the outcome of each.

    A new shard is made beside the old one, whose other heads it copies, and takes its place when it is whole. Losses of
    workers that were counted against heads, also of shards that are not finished, are forgotten.

    Raises:
        MissingFile: there is no dataset.
        UserError: as `open_beside`, or other commands generate this dataset.
        DamagedData: a shard is damaged, which `repair` mends.
    """
    dataset, settings = open_generated(STAGING, config)
    ledger = Ledger(dataset.storage, "generate", lambda unit: False)
    if ledger.others():
        raise UserError(f"other commands generate {dataset.storage.url}; give retry when they have ended")
    beside, settings = open_beside(STAGING, dataset, settings, rejection)
    ledger.forget()
    failed = [shard for shard in dataset.committed() if dataset.done(shard)["outcomes"][schema.FAILED]]
    before = {row["identity"] for shard in failed for row in _failed(dataset, shard)}
    # An interrupted command may have made shards, and may have taken away the record of the one that it was replacing.
    made = beside.committed()
    todo = [shard for shard in failed if shard not in made]
    settings = replace(settings, save_meshes=any(dataset.done(shard).get("meshes") for shard in todo))
    worker = partial(RetryWorker, settings, beside.plan, rejection, dataset.storage.address)
    make_again(STAGING, beside, [Unit(shard) for shard in todo], settings, worker)
    shards = sorted({*failed, *made})
    rows = [row for shard in shards for row in beside.identities(shard).to_pylist()]
    for shard in shards:
        _replace(dataset, beside, shard)
    beside.storage.remove_all()
    return [
        Retried(**{name: row[name] for name in Retried.__dataclass_fields__})
        for row in rows
        if row["identity"] in before
    ]


class RetryWorker(GenerateWorker):
    """Makes shards of which another dataset has all but the failed heads."""

    def __init__(self, config: GenerateConfig, plan: Plan, rejection: Rejection | None, old: str):
        super().__init__(config, plan, rejection)
        self.old = Dataset(Storage(old))
        self.rows: dict[int, dict[str, Any]] = {}
        self.views = schema.views_schema(plan.member_names).empty_table()
        self.done: dict[str, Any] = {}

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        """Make one shard and commit it."""
        rows = self.old.identities(unit.index).to_pylist()
        self.rows = {row["identity"]: row for row in rows if row["outcome"] != schema.FAILED}
        self.views, self.done = self.old.views(unit.index), self.old.done(unit.index)
        yield from super().run(unit)

    def _add_identity(
        self, unit: Unit, identity: int, writer: ShardWriter, run: dict[str, Any]
    ) -> Generator[Event, None, None]:
        """Copy an identity, or make it if it failed."""
        if identity not in self.rows:
            yield from super()._add_identity(unit, identity, writer, run)
            return
        yield Event(unit.index, identity, "copy", 0, 1)
        own = self.views.filter(self.views.column("identity").to_numpy() == identity)
        names = self.plan.member_names
        columns = list(read_members(self.old, unit.index, own, *names))
        for row, *members in zip(own.to_pylist(), *columns, strict=True):
            for name, data in zip(names, members, strict=True):
                if hashlib.sha256(data).digest() != row[name]["sha256"]:
                    member = member_name(row["key"], self.plan.members[name])
                    raise damaged(self.old.file(unit.index, ".tar"), "was changed", self.old.storage.url, member=member)
            writer.add_view(row, dict(zip(names, members, strict=True)))
        if (mesh := schema.mesh_file(identity)) in self.done.get("meshes", {}):
            writer.add_mesh(identity, self.old.storage.read(mesh))
        writer.add_identity(self.rows[identity])
        run["identity_seconds"][str(identity)] = self.done["run"]["identity_seconds"].get(str(identity), 0.0)


def _failed(dataset: Dataset, shard: int) -> list[dict[str, Any]]:
    """The rows of the identities of a shard that failed."""
    return [row for row in dataset.identities(shard).to_pylist() if row["outcome"] == schema.FAILED]


def _replace(dataset: Dataset, beside: Dataset, shard: int) -> None:
    """Put a shard in the place of the old one, whose record is away in between, so that no reader sees files of both."""
    record = dataset.file(shard, DONE)
    if dataset.storage.exists(record):
        dataset.storage.remove(record)
    for mesh in beside.done(shard).get("meshes", {}):
        dataset.storage.take(beside.storage, mesh)
    for suffix in (*SUFFIXES, DONE):
        dataset.storage.take(beside.storage, dataset.file(shard, suffix))
