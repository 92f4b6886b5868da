"""The cost of driving workers: python benchmarks/pool.py [ACTORS]; needs about 100 MB of memory per actor.

Workers that sleep instead of making heads report 29 steps per identity, as those of a rig of 125 views do. It prints the
processor time of the driver per identity, without what the start of Ray and of the workers takes, and how many identities were
made of those that sleeping alone allows.
"""

import sys
import time
from collections.abc import Iterator

from jobs.pool import Event, PoolConfig, Unit, run

STEPS, SECONDS, ITEMS, UNITS = 29, 3.0, 4, 3
"""Steps and seconds of an identity, identities of a unit, and units of each actor."""


class Sleeper:
    """Sleeps through the steps of every identity."""

    def run(self, unit: Unit) -> Iterator[Event]:
        for item in range(ITEMS * unit.index, ITEMS * (unit.index + 1)):
            for step in range(STEPS):
                # Six stages, as of a head: their first steps are always reported.
                yield Event(unit.index, item, f"stage {step // 5}", step, STEPS)
                time.sleep(SECONDS / STEPS)
            yield Event(unit.index, item, "done", STEPS, STEPS)


def main() -> None:
    actors = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    marks: list[tuple[float, float]] = []
    done = []

    def on_event(event: Event) -> None:
        if event.stage == "done":
            done.append(event.item)
            # From when all actors work until the first of them has nothing left.
            if len(done) in (actors, actors * (ITEMS * UNITS - ITEMS)):
                marks.append((time.process_time(), time.perf_counter()))

    run(range(actors * UNITS), Sleeper, PoolConfig(workers=actors), on_event)
    identities = actors * (ITEMS * UNITS - ITEMS - 1)
    (cpu, begun), (cpu_end, ended) = marks
    rate = identities / (ended - begun)
    print(
        f"{actors} actors: {1e3 * (cpu_end - cpu) / identities:.1f} ms of the driver per identity, "
        f"{rate:.1f} identities/s of {actors / SECONDS:.1f} that sleeping alone allows"
    )


if __name__ == "__main__":
    main()
