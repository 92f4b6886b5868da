"""How a run scales: python benchmarks/scale.py real [WORKERS ...], or python benchmarks/scale.py simulated.

`real` runs worker processes that sleep for log-normal times instead of making heads, of which a few kill their worker, and
prints how much of the time of the workers the pool uses. `simulated` plays a run of 1,000,000 identities on 1,000 GPUs at
measured rates, and prints how busy they and the drivers are, and the requests to the object store with their cost.
"""

import heapq
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import numpy as np

from jobs.ledger import Ledger
from jobs.pool import PoolConfig, run
from jobs.units import Event, Unit
from manifests.draws import generator
from manifests.storage import Storage

SECONDS, SIGMA = 2.0, 0.4
"""Median seconds of an identity, and the standard deviation of their logarithm, in real runs."""
ITEMS, UNITS = 8, 3
"""Identities of a unit, and units of each worker, in real runs."""
FATAL = 0.01
"""Share of identities that kill their worker the first time, in real runs."""


@dataclass(frozen=True)
class Sleeper:
    """Sleeps through identities; those that are fatal kill the process once."""

    folder: str

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        for item in range(ITEMS * unit.index, ITEMS * (unit.index + 1)):
            yield Event(unit.index, item, "views", 0, 1)
            draw = generator(0, "scale", item)
            time.sleep(SECONDS * draw.lognormal(0, SIGMA))
            if draw.random() < FATAL and Storage(self.folder).create(f"fatal/{item}", b""):
                os.kill(os.getpid(), signal.SIGKILL)
            yield Event(unit.index, item, "done", 1, 1)


def real(workers: int, folder: str) -> None:
    """Sleeping processes of this machine."""
    storage, ended = Storage(folder), []
    begun: list[float] = []

    def on_event(event: Event) -> None:
        begun.append(time.perf_counter())
        if event.ends_unit:
            ended.append(event.unit)

    before = time.process_time()
    run(
        range(workers * UNITS),
        partial(Sleeper, folder),
        PoolConfig(workers=workers, part="0/1"),
        on_event,
        Ledger(storage, "generate", lambda unit: False),
    )
    took = time.perf_counter() - begun[0]
    items = ITEMS * workers * UNITS
    slept = sum(SECONDS * generator(0, "scale", item).lognormal(0, SIGMA) for item in range(items))
    killed = len(storage.names("fatal"))
    print(
        f"{workers:>4} workers: {slept / took / workers:.1%} of their time used, {killed} of them killed, "
        f"{1e3 * (time.process_time() - before) / items:.2f} ms of the driver per identity"
    )


@dataclass(frozen=True)
class Run:
    """A run that is played, with the rates that it is played at."""

    drivers: int
    driver_seconds: float
    """Processor time of a driver per identity."""
    gpus: int = 1000
    identities: int = 1_000_000
    per_shard: int = 16
    seconds: float = 4.0
    """Mean seconds of a GPU per identity."""
    sigma: float = 0.3
    request: float = 0.05
    """Seconds of a request to the object store."""
    upload: float = 20.0
    """Seconds in which a worker commits a shard while its GPU waits; 0 where another worker of this GPU renders meanwhile."""
    lost: float = 0.002
    """Probability that a shard is lost midway with its machine, and made again."""


CLAIM, WRITES, READS = 3, 29, 6
"""Requests of a driver for a lease; and of all, per shard, those that write (24 of them parts of a tar of 1.1 GB) and read."""
WRITE_PRICE, READ_PRICE = 5e-6, 4e-7
"""Dollars per request of S3 Standard, list price of 2026."""


def play(one: Run) -> tuple[float, float, float]:
    """The share of GPU time in which heads are made, that of the busiest driver, and the hours of the run."""
    random = np.random.default_rng(0)
    shards = -(-one.identities // one.per_shard)
    mu = np.log(one.seconds) - one.sigma**2 / 2
    needed = random.lognormal(mu, one.sigma, (shards, one.per_shard)).sum(1)
    lost = random.random(shards) < one.lost
    free = [(0.0, gpu) for gpu in range(one.gpus)]
    driver_free, driver_busy = [0.0] * one.drivers, [0.0] * one.drivers
    heapq.heapify(free)
    # A driver waits for the object store when it takes a lease, and for its processor when it hears of identities.
    each = CLAIM * one.request + one.per_shard * one.driver_seconds
    end = made = 0.0
    for shard in range(shards):
        for attempt in range(1 + lost[shard]):
            now, gpu = heapq.heappop(free)
            driver = gpu % one.drivers
            begin = max(now, driver_free[driver]) + each
            driver_free[driver], driver_busy[driver] = begin, driver_busy[driver] + each
            whole = attempt == lost[shard]
            until = begin + (needed[shard] + one.upload if whole else needed[shard] / 2)
            made += needed[shard] if whole else 0.0
            end = max(end, until)
            heapq.heappush(free, (until, gpu))
    return made / (one.gpus * end), max(driver_busy) / end, end / 3600


def simulated() -> None:
    """Runs of one and of many drivers."""
    shards = -(-Run.identities // Run.per_shard)
    price = shards * (WRITES * WRITE_PRICE + READS * READ_PRICE)
    print(f"1,000,000 identities of {Run.seconds:g} GPU-seconds on 1,000 GPUs, {shards:,} shards, {4 * shards:,} files")
    print(f"{shards * (WRITES + READS):,} requests, {price:.0f} dollars")
    for name, one in {
        "one driver of Ray": Run(1, 0.005),
        "one driver of Ray, 40 s per identity": Run(1, 0.005, seconds=40.0),
        "125 parts of 8 GPUs, one worker per GPU": Run(125, 0.0005),
        "the same, 64 identities per shard": Run(125, 0.0005, per_shard=64, upload=80.0),
        "125 parts of 8 GPUs, two workers per GPU": Run(125, 0.0005, upload=0.0),
    }.items():
        busy, driver, hours = play(one)
        print(f"{name}: GPUs {busy:.1%} busy, busiest driver {driver:.1%}, {hours:.2f} hours")


def main() -> None:
    if sys.argv[1:2] == ["simulated"]:
        simulated()
        return
    for workers in map(int, sys.argv[2:] or ["1", "4", "16", "64"]):
        with tempfile.TemporaryDirectory() as folder:
            real(workers, folder)


if __name__ == "__main__":
    main()
