"""A worker that makes shards of noise pictures, some of whose identities are fatal; importable by worker processes."""

import hashlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from small import noise_sample, small_plan

from jobs import pool
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from jobs.units import Event, OutOfMemory, Unit, WorkerIsBroken
from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.shards import DONE, ShardWriter
from manifests.storage import Storage

PER_SHARD = 4
COMMIT = -1
"""The fault of a commit, among those of identities."""


@dataclass
class Maker:
    """Makes shards; what its identities do is told by `faults`: die, die-once, hang, raise, break, memory or slow."""

    out: str
    identities: int
    faults: dict[int, str] = field(default_factory=dict)
    notes: str = ""
    """A folder where each identity is noted when it begins."""
    seconds: float = 0.0

    def run(self, unit: Unit):
        storage, plan = Storage(self.out), small_plan(self.identities, PER_SHARD)
        with ShardWriter(storage, plan, unit.index) as writer:
            for identity in plan.identities_of(unit.index):
                yield Event(unit.index, identity, "head", 0, 2)
                row = {"identity": identity, "seed": identity, "outcome": schema.FAILED, "views": 0, "facts": "{}"}
                reason = unit.skipped.get(identity)
                if reason is None:
                    yield Event(unit.index, identity, "views", 1, 2)
                    time.sleep(self.seconds)
                    reason = self.fault(identity)
                if reason is None:
                    writer.add_view(*noise_sample(plan, identity, 0))
                    row |= {"outcome": schema.KEPT, "views": 1}
                writer.add_identity({**row, "reason": reason})
                yield Event(unit.index, identity, "done", 2, 2)
            yield Event(unit.index, None, "commit", 0, 1)
            self.fault(COMMIT)
            writer.commit({"identity_seconds": {}})

    def fault(self, identity: int) -> str | None:
        """Do what the identity does, and return why it failed if it did."""
        kind = self.faults.get(identity)
        if self.notes and identity != COMMIT:
            Path(self.notes, f"{identity}-{os.getpid()}-{time.monotonic_ns()}").touch()
        first = not self.notes or len(list(Path(self.notes).glob(f"{identity}-*"))) == 1
        if kind == "raise":
            return "OSError: it cannot be made"
        if kind == "die" or (kind == "die-once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "break":
            raise WorkerIsBroken("the device is lost")
        if kind == "memory":
            raise OutOfMemory("no memory is left")
        if kind == "hang" or (kind == "hang-once" and first):
            time.sleep(3600)
        return None


def is_made(storage: Storage, shard: int) -> bool:
    return storage.exists(f"{schema.SHARDS}/{schema.shard_name(shard)}{DONE}")


def ledger_of(out: str) -> Ledger:
    storage = Storage(out)
    return Ledger(storage, "generate", partial(is_made, storage), remembers=True)


def make(maker: Maker, config: PoolConfig, on_event=lambda event: None) -> Dataset:
    """Make what is missing of a dataset."""
    storage = Storage(maker.out)
    write_plan(storage, small_plan(maker.identities, PER_SHARD))
    storage.clear_leftovers()
    dataset = Dataset(storage)
    pool.run(dataset.pending(), partial(Maker, **vars(maker)), config, on_event, ledger_of(maker.out))
    return dataset


def hashes(dataset: Dataset) -> dict[str, str]:
    """The hash of every file of the shards, but for their records, which hold times."""
    folder = Path(dataset.storage.root) / schema.SHARDS
    files = [file for file in folder.iterdir() if not file.name.endswith(DONE) and not file.name.startswith(".")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":  # python -m workers OUT IDENTITIES SECONDS PART WORKERS NOTES
    out, identities, seconds, part, workers, notes = sys.argv[1:]
    make(Maker(out, int(identities), {}, notes, float(seconds)), PoolConfig(workers=int(workers), part=part))
