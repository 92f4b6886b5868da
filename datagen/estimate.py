"""Says what `generate` would do before it is begun: views, bytes and time, from a few heads that are made and thrown away."""

import time
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from scipy import stats

from datagen.generate import GenerateConfig, GenerateWorker, make_plan
from datagen.identity import Made, Rejected, make_identity
from datagen.preview import Rejection
from jobs.devices import require_device
from jobs.pool import Event, PoolConfig, local_cores, workers_that_fit
from jobs.progress import JobProgress
from manifests.errors import UserError
from manifests.plan import Plan
from manifests.shards import stored_size

SURE = 0.9
"""How likely the true mean lies in an interval."""


@dataclass(frozen=True)
class Interval:
    """A total and between what it likely lies."""

    value: float
    low: float
    high: float

    @classmethod
    def of_total(cls, probes: list[float], count: int) -> "Interval":
        """The sum over so many heads, of which the probes are a random few (Student's t)."""
        mean, error = float(np.mean(probes)), float(stats.sem(probes))
        reach = float(stats.t.ppf((1 + SURE) / 2, len(probes) - 1)) * error
        return cls(*(count * max(x, 0.0) for x in (mean, mean - reach, mean + reach)))


@dataclass(frozen=True)
class Estimate:
    """What a plan comes to."""

    plan: Plan
    views: int
    """Of each identity."""
    bytes: Interval
    seconds: Interval
    """Of worker time."""
    workers: int
    probes: int
    rejected: int
    failed: tuple[str, ...]

    def __str__(self) -> str:
        plan, b, s = self.plan, self.bytes, self.seconds
        per_worker = Interval(*(x / self.workers for x in (s.value, s.low, s.high)))
        lines = [
            f"{plan.identities} identities of {self.views} views, {plan.resolution} px: "
            f"{plan.identities * self.views} views in {plan.shards} shards",
            f"{b.value / 1e9:.3g} GB ({b.low / 1e9:.3g} to {b.high / 1e9:.3g})",
            f"{_span(s)} of worker time, {_span(per_worker)} with {self.workers} workers that do not slow each other",
            f"from {self.probes} heads made here on {plan.source['name']}, intervals of {SURE:.0%}",
        ]
        if self.rejected:
            lines.append(f"{self.rejected} of them were rejected at a first look, which costs less")
        return "\n".join([*lines, *(f"failed: {reason}" for reason in self.failed)])


def estimate(asked: GenerateConfig, probes: int = 4, rejection: Rejection | None = None) -> Estimate:
    """Make so many heads as `generate` would, spread over the seeds, and reckon from them; writes nothing.

    Raises:
        ValueError: there are too few probes; the source or the device is not there; or no head can be made.
    """
    if probes < 2:
        raise UserError(f"--probes is {probes}; two heads or more tell how much heads differ")
    require_device(asked.device)
    plan = make_plan(asked, asked.source.open("cpu"), rejection)
    worker = GenerateWorker(asked, plan, rejection)
    count = max(2, min(probes, asked.identities))
    spread = np.linspace(0, asked.identities - 1, count).round().astype(int).tolist()
    # One more is made first and not counted: it pays for what is done once.
    probed = []
    with JobProgress("probe", count + 1) as progress:
        for number, identity in enumerate([spread[0], *spread]):
            probed.append(_probe(worker, identity))
            progress.update(Event(number, number, "probe", 1, 1))
    probed = probed[1:]
    failed = tuple(probe.failed for probe in probed if probe.failed)
    if len(failed) == count:
        raise UserError(f"no head can be made: {failed[0]}")
    return Estimate(
        plan,
        len(worker.recipe.rig),
        Interval.of_total([probe.bytes for probe in probed], asked.identities),
        Interval.of_total([probe.seconds for probe in probed], asked.identities),
        workers_of(asked.pool),
        count,
        sum(probe.rejected for probe in probed),
        failed,
    )


@dataclass(frozen=True)
class _Probe:
    seconds: float
    bytes: float
    rejected: bool
    failed: str


def _probe(worker: GenerateWorker, identity: int) -> _Probe:
    """Make one head and throw it away."""
    begun, last, failed = time.monotonic(), None, ""
    try:
        *_, last = make_identity(worker.source, worker.recipe, identity, worker.beside, worker.judge)
    except Exception as error:
        # As in generation, what one head raises concerns that head alone.
        failed = f"identity {identity}: {type(error).__name__}: {error}"
    samples = last.samples if isinstance(last, Made) else []
    size = sum(stored_size(len(data)) for _, members in samples for data in members.values())
    return _Probe(time.monotonic() - begun, float(size), isinstance(last, Rejected), failed)


def workers_of(config: PoolConfig) -> int:
    """How many workers would be started on this machine."""
    return 1 if config.inline else max(1, workers_that_fit(config, local_cores(config), torch.cuda.device_count()))


def _span(seconds: Interval) -> str:
    value, low, high = (str(timedelta(seconds=round(x))) for x in (seconds.value, seconds.low, seconds.high))
    return f"{value} ({low} to {high})"
