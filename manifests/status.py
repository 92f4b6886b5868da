"""The progress of a dataset, computed from its committed files alone, so that any machine can report it."""

from dataclasses import dataclass
from datetime import timedelta
from statistics import median

from manifests import schema
from manifests.dataset import Dataset


@dataclass(frozen=True)
class Status:
    """The progress of a dataset, with an estimate of the remaining work where shards are missing."""

    url: str
    shards: int
    shards_done: int
    identities: int
    kept: int
    filtered: int
    failed: int
    views: int
    bytes: int
    identity_seconds: float
    """Median seconds of worker time per identity."""
    failures: tuple[str, ...]
    """One line per failed identity: its seed, the stage and the reason."""

    def __str__(self) -> str:
        done = self.kept + self.filtered + self.failed
        lines = [
            f"{self.url}: {self.shards_done} of {self.shards} shards, {done} of {self.identities} identities "
            f"({self.kept} kept, {self.filtered} filtered, {self.failed} failed), "
            f"{self.views} views, {self.bytes / 1e6:.1f} MB"
        ]
        if self.shards_done < self.shards and done:
            left = timedelta(seconds=round((self.identities - done) * self.identity_seconds))
            lines.append(f"{self.identity_seconds:.1f} s per identity, about {left} of worker time left")
        return "\n".join([*lines, *self.failures])


def summarise(dataset: Dataset) -> Status:
    """The status of a dataset from its commit records, and the failures from its identity tables."""
    committed = dataset.committed()
    done = [dataset.done(shard) for shard in committed]
    outcomes = {o: sum(d["outcomes"][o] for d in done) for o in (schema.KEPT, schema.FILTERED, schema.FAILED)}
    failures = [
        f"failed: identity {row['identity']} (seed {row['seed']}) at stage {row['stage']}: {row['reason']}"
        for shard, record in zip(committed, done, strict=True)
        if record["outcomes"][schema.FAILED]
        for row in dataset.identities(shard).to_pylist()
        if row["outcome"] == schema.FAILED
    ]
    return Status(
        url=dataset.storage.url,
        shards=dataset.plan.shards,
        shards_done=len(committed),
        identities=dataset.plan.identities,
        kept=outcomes[schema.KEPT],
        filtered=outcomes[schema.FILTERED],
        failed=outcomes[schema.FAILED],
        views=sum(d["views"] for d in done),
        bytes=sum(file["size"] for d in done for file in d["files"].values()),
        identity_seconds=median([s for d in done for s in d["run"]["identity_seconds"].values()] or [0.0]),
        failures=tuple(failures),
    )
