"""Shard-sized units of work, what a worker does with them, and the events that it reports."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

ATTEMPTS = 3
"""Number of workers that an item may be fatal to before it is given up."""


PATIENCE = 10
"""A worker that has not begun its first item, because it loads its models, may be silent this many times longer."""


@dataclass(frozen=True)
class Unit:
    """A shard-sized piece of work, without the items in `skipped`, which are recorded as failed with the reason given here."""

    index: int
    skipped: dict[int, str] = field(default_factory=dict)
    watched: frozenset[int] = frozenset()
    """Items that workers were lost to before, whose every stage is reported at once."""


ELSEWHERE = "elsewhere"
"""The stage of a unit that another command has finished."""


@dataclass(frozen=True)
class Event:
    """The progress of a worker: `done` of `total` steps of an item are complete, and the next one is `stage`; without an item,
    of the unit itself."""

    unit: int
    item: int | None
    stage: str
    done: int
    total: int

    @property
    def ends_item(self) -> bool:
        """Whether the item is complete."""
        return self.item is not None and self.done == self.total

    @property
    def ends_unit(self) -> bool:
        """Whether the unit is finished, here or elsewhere; workers do not report it, the pool does."""
        return self.item is None and self.done == self.total


def finished(unit: Unit, stage: str = "finished") -> Event:
    """The event of a unit that is finished, or was finished elsewhere."""
    return Event(unit.index, None, stage, 1, 1)


@runtime_checkable
class Worker(Protocol):
    """Runs units, one after the other."""

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        """Run one unit and make its result durable; yields an event before every stage that may take long.

        It may be closed after an event that ends an item.
        """
        ...


class WorkersKeepDying(RuntimeError):
    """Workers die repeatedly before their first item or while they commit a unit, so that no item can be the cause."""


class NoCapacity(RuntimeError):
    """No worker could be placed for a long time."""


class WorkerIsBroken(RuntimeError):
    """A worker cannot continue in this process, because its device has failed; another worker replaces it."""


class OutOfMemory(WorkerIsBroken):
    """A worker has run out of memory of its machine or of its device."""
