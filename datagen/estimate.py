"""Estimates the views, bytes and time of `generate` from a few heads that are made and discarded."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from datagen.config import GenerateConfig
from datagen.generate import IDENTITY_ATTEMPTS, GenerateWorker, make_plan
from datagen.heads import Rejection
from datagen.identity import Made, Rejected, make_identity
from jobs.devices import require_device, usable_cores
from jobs.pool import PoolConfig, workers_that_fit
from jobs.progress import JobProgress
from jobs.units import Event
from manifests.errors import UserError
from manifests.interval import Interval
from manifests.plan import Plan
from manifests.ply import encode_mesh
from manifests.shards import stored_size

CONFIDENCE = 0.9
"""Probability that an interval holds the true total."""
OF_MEAN = 0.95
"""Probability with which the mean is bounded for that, since workers end unevenly; simulated runs in the tests confirm it."""


@dataclass(frozen=True)
class Estimate:
    """The estimated size and duration of a plan."""

    plan: Plan
    views: int
    """Number of views of each identity."""
    bytes: Interval | None
    """Bytes of the tars, and of meshes that are saved, if all heads are kept; None if no probe was kept."""
    seconds: Interval
    """Seconds of worker time."""
    workers: int | None
    """Number of workers that run at once; None if it depends on the cluster."""
    requested_workers: int
    """Number of workers that were requested; 0 for as many as fit."""
    gpus_per_worker: float
    price: float
    """Price of a GPU for an hour; 0 if it was not given."""
    files: int
    """Number of files of the dataset, without its index."""
    probes: int
    rejected: int
    failed: tuple[str, ...]

    @property
    def elapsed(self) -> Interval | None:
        """Seconds from start to end. One worker makes a shard, so the worker with most shards decides."""
        if self.workers is None:
            return None
        rounds = -(-self.plan.shards // self.workers)
        share = min(1.0, rounds * self.plan.identities_per_shard / self.plan.identities)
        return self.seconds.times(share)

    @property
    def gpu_hours(self) -> Interval:
        """Hours of GPUs that are occupied, also by workers that wait for the last one to end."""
        if self.elapsed is None or self.workers is None:
            return self.seconds.times(self.gpus_per_worker / 3600)
        return self.elapsed.times(self.workers * self.gpus_per_worker / 3600)

    def _gpus(self) -> list[str]:
        """The lines about GPUs and money, where they are asked for."""
        if not self.gpus_per_worker:
            return []
        hours = self.gpu_hours
        lines = [f"{hours.value:.3g} GPU-hours ({hours.low:.3g} to {hours.high:.3g})"]
        if self.price:
            cost, each = hours.times(self.price), 1000 / self.plan.identities
            lines.append(
                f"cost {cost.value:.4g} ({cost.low:.4g} to {cost.high:.4g}) at {self.price:g} per GPU-hour, "
                f"{each * cost.value:.4g} ({each * cost.low:.4g} to {each * cost.high:.4g}) per 1,000 heads"
            )
        return lines

    def _elapsed(self) -> str:
        if (elapsed := self.elapsed) is None:
            return (
                f"divided by the number of workers that fit on the Ray cluster, at most {self.plan.shards}; "
                "give --workers to have it divided here"
            )
        fewer = ""
        if self.requested_workers > (self.workers or 0):
            shards = _count(self.plan.shards, "shard")
            fewer = f" (not {self.requested_workers}: no more run at once for {shards} on this machine)"
        return f"{elapsed.as_time()} with {_count(self.workers or 0, 'worker')}{fewer} if they do not slow each other"

    def __str__(self) -> str:
        plan, b = self.plan, self.bytes
        size = "of unknown size, since no probe was kept"
        if b is not None:
            size = f"{b.value / 1e9:.3g} GB ({b.low / 1e9:.3g} to {b.high / 1e9:.3g})"
        lines = [
            f"{plan.identities} identities of {self.views} views, {plan.resolution} px: "
            f"{plan.identities * self.views} views in {plan.shards} shards",
            f"{size}{', if all heads are kept' if self.rejected or self.failed else ''}, in {self.files} files",
            f"{self.seconds.as_time()} of worker time, {self._elapsed()}",
            *self._gpus(),
            f"from {self.probes} heads made here on {plan.source['name']}, intervals of {CONFIDENCE:.0%}",
        ]
        if self.rejected:
            lines.append(f"{self.rejected} of them were rejected at a first look, which costs less")
        return "\n".join([*lines, *(f"failed: {reason}" for reason in self.failed)])


def estimate(
    config: GenerateConfig, probes: int = 4, rejection: Rejection | None = None, price: float = 0.0
) -> Estimate:
    """Estimate a dataset from `probes` heads, spread over the seeds, which are made as `generate` would; nothing is written.

    Args:
        price: of a GPU for an hour, in any currency.

    Raises:
        UserError: there are too few probes, a price but no GPU, the source or the device cannot be used, or no head can be
            made.
    """
    if probes < 2:
        raise UserError(f"--probe is {probes}; two heads or more tell how much heads differ")
    if price and not config.pool.gpus_per_worker:
        raise UserError("--price is that of a GPU-hour, and workers have no GPU; give --gpus-per-worker, such as 0.5")
    require_device(config.device)
    plan = make_plan(config, config.source.open("cpu"), rejection)
    worker = GenerateWorker(config, plan, rejection)
    count = max(2, min(probes, config.identities))
    spread = np.linspace(0, config.identities - 1, count).round().astype(int).tolist()
    # The first one is made twice and its first time not counted, because it includes what is done once.
    probed = []
    with JobProgress("probe", count + 1) as progress:
        for number, identity in enumerate([spread[0], *spread]):
            probed.append(_probe(worker, identity))
            progress.update(Event(number, number, "probe", 1, 1))
    probed = probed[1:]
    failed = tuple(probe.failed for probe in probed if probe.failed)
    if len(failed) == count:
        raise UserError(f"no head can be made: {failed[0]}")
    made = [probe.bytes for probe in probed if probe.bytes is not None]
    return Estimate(
        plan,
        len(worker.settings.rig),
        total(made, config.identities) if made else None,
        total([probe.seconds for probe in probed], config.identities),
        workers_of(config.pool, plan.shards),
        config.pool.workers,
        config.pool.gpus_per_worker,
        price,
        4 * plan.shards + 1 + (plan.identities if config.save_meshes else 0),
        count,
        sum(probe.rejected for probe in probed),
        failed,
    )


def total(probes: list[float], count: int) -> Interval:
    """The sum over `count` heads, of which the probes are a random sample; one probe gives no bounds.

    Seconds and bytes are positive, and a few heads take far more than most, so the bounds are those of the mean of a
    log-normal distribution: the modified method of Cox (Olsson, Confidence Intervals for the Mean of a Log-Normal
    Distribution, 2005, section 3.3). Student's interval holds the true mean too rarely there.
    """
    mean = float(np.mean(probes))
    if len(probes) == 1:
        return Interval(count * mean, 0.0, math.inf)
    logs = np.log(np.maximum(probes, 1e-9))
    variance, degrees = float(logs.var(ddof=1)), len(probes) - 1
    reach = float(stats.t.ppf((1 + OF_MEAN) / 2, degrees)) * math.sqrt(
        variance / len(probes) + variance**2 / (2 * degrees)
    )
    middle = float(logs.mean()) + variance / 2
    low, high = (math.exp(min(middle + side * reach, 700.0)) for side in (-1, 1))
    return Interval(count * mean, count * min(low, mean), count * max(high, mean))


@dataclass(frozen=True)
class _Probe:
    seconds: float
    bytes: float | None
    """Bytes in the tar and of a saved mesh; None for a head that failed or was rejected."""
    rejected: bool
    failed: str


def _probe(worker: GenerateWorker, identity: int) -> _Probe:
    """Make one head and discard it."""
    begun, last, failed = time.monotonic(), None, ""
    try:
        *_, last = make_identity(worker.source, worker.settings, identity, worker.executor, worker.judge)
    except Exception as error:
        # As in generation, an exception of one head concerns that head alone.
        failed = f"identity {identity}: {type(error).__name__}: {error}"
    size = None
    if isinstance(last, Made):
        size = float(sum(stored_size(len(data)) for _, members in last.samples for data in members.values()))
        if worker.config.save_meshes:
            size += len(encode_mesh(last.mesh.vertices, last.mesh.faces))
    # `generate` tries a head that fails again.
    attempts = IDENTITY_ATTEMPTS if failed else 1
    return _Probe(attempts * (time.monotonic() - begun), size, isinstance(last, Rejected), failed)


def workers_of(config: PoolConfig, shards: int) -> int | None:
    """The number of workers that would make `shards` shards at once; None if it depends on a cluster.

    More workers than this machine has cores share the cores, which saves no time, so they do not count.
    """
    if config.inline:
        return 1
    if config.ray != "local":
        return min(config.workers, shards) if config.workers else None
    return max(1, min(shards, workers_that_fit(config, usable_cores(), torch.cuda.device_count())))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
