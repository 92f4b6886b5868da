"""Makes failed heads again, once the cause of their failures is mended, and leaves all others as they are."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datagen.config import GenerateConfig, RemakeConfig
from datagen.generate import GenerateWorker
from datagen.heads import Rejection
from datagen.remake import check_same, make_again, open_beside, open_generated
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
        UserError: as `check_same` and `open_beside`, or other commands generate this dataset.
        DamagedData: a shard is damaged, which `repair` mends.
    """
    dataset, settings = open_generated(STAGING, config)
    check_same(STAGING, dataset, settings, rejection)
    ledger = Ledger(dataset.storage, "generate", lambda unit: False, note=STAGING)
    with ledger:
        if ledger.certain_others():
            raise UserError(f"other commands generate {dataset.storage.url}; give retry when they have ended")
        ledger.forget()
        beside, settings = open_beside(STAGING, dataset, settings)
        # An interrupted command may have made shards again, some of whose heads still failed.
        made = [shard for shard in beside.committed() if not beside.done(shard)["outcomes"][schema.FAILED]]
        whole = dataset.records(committed := dataset.committed())
        records = dict(zip(committed, whole, strict=True))
        todo = [shard for shard, done in records.items() if done["outcomes"][schema.FAILED] and shard not in made]
        for shard in set(todo) & set(beside.committed()):
            beside.storage.remove(beside.file(shard, DONE))
        failed = {row["identity"] for shard in {*todo, *made} & {*committed} for row in _failed(dataset, shard)}
        settings = replace(settings, save_meshes=any(done.get("meshes") for done in records.values()))
        worker = partial(RetryWorker, settings, beside.plan, rejection, dataset.storage.address)
        make_again(STAGING, beside, [Unit(shard) for shard in todo], settings, worker)
        shards = sorted({*todo, *made})
        rows = [row for shard in shards for row in beside.identities(shard).to_pylist()]
        for shard in shards:
            _replace(dataset, beside, shard)
        beside.storage.remove_all()
    found = [row for row in rows if row["identity"] in failed or row["outcome"] == schema.FAILED]
    return [Retried(**{name: row[name] for name in Retried.__dataclass_fields__}) for row in found]


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

    def _first_notes(self, unit: Unit) -> dict[str, Any]:
        """The notes of the old shard on its time, to which that of the heads made here is added."""
        old = self.done["run"]
        return {
            **super()._first_notes(unit),
            "seconds": old.get("seconds", 0.0),
            "stage_seconds": dict(old.get("stage_seconds", {})),
        }

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
    # First of all that is removed there, so that no shard ever counts as made again of which a part is gone.
    beside.storage.remove(beside.file(shard, DONE))
