"""The cost of driving workers: python benchmarks/pool.py [ACTORS]; needs about 100 MB of memory per actor.

Workers that sleep instead of making heads report 29 steps per identity, as those of a rig of 125 views do. It prints the
processor time of the driver per identity, without what the start of Ray and of the workers takes, and how many identities were
made of those that sleeping alone allows.

    python benchmarks/pool.py simulated

prints the part of it that is not Ray's (leases, events, progress), and the memory: 100,000 identities, up to 1,000 actors.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Generator
from itertools import cycle

from jobs.ledger import Ledger
from jobs.pool import PoolConfig, run
from jobs.progress import JobProgress
from jobs.units import Event, Unit
from jobs.work import Work
from manifests.storage import Storage

STEPS, SECONDS, ITEMS, UNITS = 29, 4.0, 4, 3
"""Steps and seconds of an identity, identities of a unit, and units of each actor."""
SHARD, IDENTITIES = 16, 100_000
"""Identities of a unit and of the whole job, where actors are simulated."""


class Sleeper:
    """Sleeps through the steps of every identity."""

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        for item in range(ITEMS * unit.index, ITEMS * (unit.index + 1)):
            for step in range(STEPS):
                yield Event(unit.index, item, f"stage {step // 5}", step, STEPS)
                time.sleep(SECONDS / STEPS)
            yield Event(unit.index, item, "done", STEPS, STEPS)


def ledger(folder: str) -> Ledger:
    return Ledger(Storage(folder), "generate", lambda unit: False)


def measured(actors: int, folder: str) -> None:
    """Sleeping workers as actors of Ray."""
    marks: list[tuple[float, float]] = []
    done = []

    def on_event(event: Event) -> None:
        if event.stage == "done":
            done.append(event.item)
            # From when all actors work until the first of them has nothing left.
            if len(done) in (actors, actors * (ITEMS * UNITS - ITEMS)):
                marks.append((time.process_time(), time.perf_counter()))

    run(range(actors * UNITS), Sleeper, PoolConfig(workers=actors), on_event, ledger(folder))
    identities = actors * (ITEMS * UNITS - ITEMS - 1)
    (cpu, begun), (cpu_end, ended) = marks
    rate = identities / (ended - begun)
    print(
        f"{actors} actors: {1e3 * (cpu_end - cpu) / identities:.1f} ms of the driver per identity, "
        f"{rate:.1f} identities/s of {actors / SECONDS:.1f} that sleeping alone allows"
    )


def simulated(actors: int, folder: str) -> None:
    """The work of a driver for two events of every identity, without Ray."""
    begun = time.process_time()
    with ledger(folder) as leases, JobProgress("simulated", IDENTITIES) as progress:
        work = Work(map(Unit, range(IDENTITIES // SHARD)), leases, progress.update)
        running: list[Unit | None] = [None] * actors
        step = [0] * actors
        for actor in cycle(range(actors)):
            if not work.remains:
                break
            host = f"host {actor // 8}"
            unit = running[actor] = running[actor] or work.next(host)
            if unit is None:
                continue
            item, ends = divmod(step[actor], 2)
            if item < SHARD:
                work.reported(Event(unit.index, SHARD * unit.index + item, "head", ends, 1), host)
                step[actor] += 1
            else:
                work.finished(unit, host)
                running[actor], step[actor] = None, 0
    took = time.process_time() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{actors} simulated actors: {1e3 * took / IDENTITIES:.3f} ms per identity, {memory:.0f} MB at most")


def main() -> None:
    asked = sys.argv[1] if len(sys.argv) > 1 else "16"
    with tempfile.TemporaryDirectory() as folder:
        if asked != "simulated":
            measured(int(asked), folder)
            return
        for actors in (8, 64, 256, 1000):
            simulated(actors, f"{folder}/{actors}")


if __name__ == "__main__":
    main()
