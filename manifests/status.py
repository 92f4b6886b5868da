"""The progress of a dataset, computed from its files alone, so that any machine can report it.

One listing tells which shards are committed, and their commit records hold the rest; no table and no picture is read.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from typing import Any

import numpy as np

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.interval import Interval
from manifests.writers import is_dead

VERSION = 1
"""Version of the fields of `Status`."""
RECENT = 3600.0
"""Seconds before the last commit over which rates are taken."""
CONFIDENCE = 0.9
SHOWN = 20
"""Failures that the text lists; the document has all of them."""
RENDERING, WAITING = ("head", "preview", "views"), ("mesh", "encode")
"""The stages of a worker's main thread: those in which it computes, and those in which it waits for its other threads."""


@dataclass(frozen=True)
class Failure:
    """A head that was not made, and what helps to find the cause."""

    identity: int
    seed: int
    stage: str
    cause: str
    """The exception with its message, or what happened to the worker."""
    signal: str | None = None
    """The signal that killed the worker."""
    traceback_sha256: str | None = None
    """The hash of the traceback, which the commit record of the shard holds: equal ones have one cause."""
    host: str | None = None
    attempts: int | None = None

    @property
    def kind(self) -> str:
        """The cause without what differs from head to head."""
        return self.cause.partition(":")[0]


@dataclass(frozen=True)
class Host:
    """A machine that has committed shards."""

    host: str
    identities: int
    failed: int
    identity_seconds: float
    """Mean seconds of worker time per identity."""
    last_commit: str
    """Time of its last commit in UTC."""


@dataclass(frozen=True)
class Status:
    """The progress of a dataset, with an estimate of the remaining work where shards are missing."""

    version: int
    url: str
    time: str
    """When this was computed, in UTC."""
    shards: int
    shards_done: int
    identities: int
    kept: int
    filtered: int
    failed: int
    views: int
    bytes: int
    identity_seconds: float
    """Mean seconds of worker time per identity; 0 if there is none."""
    identities_per_hour: float
    """Identities per hour of real time in the hour before the last commit; 0 if there is none."""
    worker_seconds_left: Interval | None
    """Worker time of the remaining identities; None if there are none, or if none was made."""
    seconds_left: Interval | None
    """Real time of the remaining identities at the present rate."""
    stage_seconds: dict[str, float]
    """Mean seconds per identity that the main thread of a worker spends in each stage."""
    commands: int
    """Commands that are at work, or on other machines may be."""
    hosts: tuple[Host, ...]
    failures_by_cause: dict[str, int]
    damaged: tuple[str, ...]
    """Commit records that do not parse; `spinset repair` restores them."""
    disk_free: int | None
    """Free bytes on the disk of a local dataset."""
    disk_size: int | None
    failures: tuple[Failure, ...]

    @property
    def is_complete(self) -> bool:
        return self.shards_done == self.shards

    @property
    def waiting(self) -> float:
        """The share of a worker's time in which it waits for meshes and files instead of rendering."""
        total = sum(self.stage_seconds.values())
        return sum(self.stage_seconds.get(stage, 0.0) for stage in WAITING) / total if total else 0.0

    @property
    def bottleneck(self) -> str | None:
        """The kind of stage that takes most of the time of a worker; None if nothing was measured."""
        if not self.stage_seconds:
            return None
        return "meshes and files" if self.waiting > 0.5 else "rendering"

    def __str__(self) -> str:
        done = self.kept + self.filtered + self.failed
        lines = [
            f"{self.url}: {self.shards_done} of {self.shards} shards, {done} of {self.identities} identities "
            f"({self.kept} kept, {self.filtered} filtered, {self.failed} failed), "
            f"{self.views} views, {self.bytes / 1e6:.1f} MB"
        ]
        if self.worker_seconds_left:
            left = self.worker_seconds_left.as_time()
            lines.append(f"{self.identity_seconds:.1f} s per identity, {left} of worker time left")
        if self.seconds_left:
            lines.append(f"{self.seconds_left.as_time()} left at {self.identities_per_hour:.0f} identities per hour")
        if not self.is_complete:
            lines.append(f"{self.commands or 'no'} command{'s are' if self.commands > 1 else ' is'} at work on it")
        if self.stage_seconds:
            stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.stage_seconds.items())
            lines.append(f"seconds per identity: {stages}; workers wait {self.waiting:.0%} for meshes and files")
        if len(self.hosts) > 1:
            lines += [
                f"{one.host}: {one.identities} identities, {one.failed} failed, {one.identity_seconds:.1f} s each, "
                f"last commit {one.last_commit}"
                for one in self.hosts
            ]
        if self.disk_free is not None and self.disk_size and not self.is_complete:
            lines.append(f"disk: {self.disk_free / 1e9:.1f} GB free of {self.disk_size / 1e9:.1f} GB")
        if len(self.failures) > SHOWN:
            lines += [f"failed: {count} x {cause}" for cause, count in self.failures_by_cause.items()]
        lines += [
            f"failed: identity {one.identity} (seed {one.seed}) at stage {one.stage}: {one.cause}"
            for one in self.failures[:SHOWN]
        ]
        if len(self.failures) > SHOWN:
            lines.append(f"and {len(self.failures) - SHOWN} more failed; --json lists them all")
        lines += [f"damaged: {name}" for name in self.damaged]
        return "\n".join(lines)


def summarise(dataset: Dataset) -> Status:
    """The status of a dataset."""
    committed, damaged = _records(dataset)
    done = list(committed.values())
    outcomes = {o: sum(d["outcomes"][o] for d in done) for o in (schema.KEPT, schema.FILTERED, schema.FAILED)}
    failures = [failure for shard, record in committed.items() for failure in _failures(dataset, shard, record)]
    seconds = np.array([s for d in done for s in d["run"].get("identity_seconds", {}).values()])
    left = dataset.plan.identities - sum(outcomes.values())
    worker_seconds_left, rate = _left(seconds, left), _identities_per_hour(done)
    names = dataset.storage.names("work/generate") if left else []
    disk = shutil.disk_usage(dataset.storage.root) if dataset.storage.is_local else None
    return Status(
        version=VERSION,
        url=dataset.storage.url,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        shards=dataset.plan.shards,
        shards_done=len(done),
        identities=dataset.plan.identities,
        kept=outcomes[schema.KEPT],
        filtered=outcomes[schema.FILTERED],
        failed=outcomes[schema.FAILED],
        views=sum(d["views"] for d in done),
        bytes=sum(file["size"] for d in done for file in (d["files"] | d.get("meshes", {})).values()),
        identity_seconds=float(seconds.mean()) if len(seconds) else 0.0,
        identities_per_hour=rate,
        worker_seconds_left=worker_seconds_left,
        seconds_left=worker_seconds_left.times(3600 / rate / float(seconds.mean()))
        if worker_seconds_left and rate
        else None,
        stage_seconds=_stage_seconds(done),
        commands=sum(name.count("-") == 2 and is_dead(name) is not True for name in names),
        hosts=_hosts(done),
        failures_by_cause=dict(Counter(failure.kind for failure in failures).most_common()),
        damaged=tuple(damaged),
        disk_free=disk and disk.free,
        disk_size=disk and disk.total,
        failures=tuple(failures),
    )


def _records(dataset: Dataset) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """The commit records by shard, and the names of those that do not parse."""
    shards = dataset.committed()
    files = [dataset.file(shard, schema.DONE) for shard in shards]
    found, damaged = {}, []
    for shard, file, data in zip(shards, files, dataset.storage.read_all(files), strict=True):
        if data is None:  # taken away since, as its shard is being replaced
            continue
        try:
            found[shard] = dataset.parse(shard, data)
        except DamagedData:
            damaged.append(file)
    return found, damaged


def _failures(dataset: Dataset, shard: int, done: dict[str, Any]) -> list[Failure]:
    """The failures of a shard; records of older versions do not hold them, so they are read from its table."""
    found = [Failure(**one) for one in done["run"].get("failures", [])]
    if len(found) == done["outcomes"][schema.FAILED]:
        return found
    rows = [row for row in dataset.identities(shard).to_pylist() if row["outcome"] == schema.FAILED]
    return [Failure(row["identity"], row["seed"], row["stage"], row["reason"]) for row in rows]


def _left(seconds: np.ndarray, count: int) -> Interval | None:
    """Worker time of `count` further identities."""
    if not count or not len(seconds):
        return None
    error = seconds.std(ddof=1) / len(seconds) ** 0.5 if len(seconds) > 1 else seconds.mean()
    mean, reach = float(seconds.mean()), float(NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error)
    return Interval(*(count * max(x, 0.0) for x in (mean, mean - reach, mean + reach)))


def _identities_per_hour(done: Iterable[dict[str, Any]]) -> float:
    """The rate over the shards that were committed in the hour before the last commit."""
    spans = []
    for record in done:
        if "finished" in record["run"] and "seconds" in record["run"]:
            end = datetime.fromisoformat(record["run"]["finished"]).timestamp()
            spans.append((end - record["run"]["seconds"], end, sum(record["outcomes"].values())))
    if not spans:
        return 0.0
    last = max(end for _, end, _ in spans)
    recent = [span for span in spans if span[1] >= last - RECENT]
    # A shard that began before counts with its part within.
    begin = max(min(start for start, _, _ in recent), last - RECENT)
    counted = sum(count * (end - max(start, begin)) / max(end - start, 1e-9) for start, end, count in recent)
    return float(3600 * counted / max(last - begin, 1e-9))


def _stage_seconds(done: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The mean seconds per identity of every stage, over the records that hold them."""
    totals: Counter[str] = Counter()
    count = 0
    for record in done:
        if stages := record["run"].get("stage_seconds"):
            totals.update(stages)
            count += sum(record["outcomes"].values())
    return {stage: round(total / count, 4) for stage, total in totals.items()}


def _hosts(done: Iterable[dict[str, Any]]) -> tuple[Host, ...]:
    of: dict[str, list[dict[str, Any]]] = {}
    for record in done:
        if "host" in record["run"]:
            of.setdefault(record["run"]["host"], []).append(record)
    return tuple(
        Host(
            host,
            sum(sum(one["outcomes"].values()) for one in own),
            sum(one["outcomes"][schema.FAILED] for one in own),
            float(np.mean([s for one in own for s in one["run"]["identity_seconds"].values()] or [0.0])),
            max(one["run"]["finished"] for one in own),
        )
        for host, own in sorted(of.items())
    )
