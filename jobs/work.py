"""The units of a job that remain, for whatever runs them: which comes next, and what is to blame when a worker is lost.

Three kinds of losses are told apart by evidence. A worker that died, hung or broke while its machine lives on counts against
the item in hand, which is given up after ATTEMPTS of them. A machine that is gone counts against nothing. A worker that ran out
of memory while others ran beside it counts against nothing either: its unit runs again alone on a machine, and only then.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median

from jobs.disk import DiskGate
from jobs.ledger import Ledger, Loss
from jobs.units import ATTEMPTS, ELSEWHERE, Event, Unit, WorkersKeepDying, finished

LOOK = 5.0
"""Seconds between two looks at the units that other drivers hold."""
LISTING = 60.0
"""Seconds between two listings of what other drivers have finished."""
SLOW = 2.0
"""A unit that takes so many times the median is run a second time by a worker that has nothing else to do."""
ENOUGH = 3
"""Finished units before there is a median to speak of; and items that a machine may lose in a row."""


@dataclass
class _Open:
    """A unit that runs, as it was asked for: where (twice if it is slow), since when, and which items it leaves out."""

    unit: Unit
    hosts: list[str]
    skipped: set[int] = field(default_factory=set)
    started: float = field(default_factory=lambda: time.monotonic())


class Work:
    """The remaining units of one driver."""

    def __init__(
        self,
        units: Iterable[Unit],
        ledger: Ledger,
        on_event: Callable[[Event], None] = lambda event: None,
        max_disk: float = 1.0,
    ):
        """`on_event` gets the events of workers, and one for every unit that is finished, here or by another driver.

        No unit is begun while more than `max_disk` of the disk is in use.
        """
        self.ledger, self.on_event, self.gate = ledger, on_event, DiskGate(ledger.storage, max_disk)
        self.todo = deque(units)
        self.alone: deque[Unit] = deque()
        self.lone: set[int] = set()
        self.taken: deque[Unit] = deque()
        self.open: dict[int, _Open] = {}
        self.busy: Counter[str] = Counter()
        self.draining: str | None = None
        self.seconds: deque[float] = deque(maxlen=101)
        self.lost_in_a_row: dict[str, dict[int | None, Unit]] = {}
        self.left_out: set[str] = set()
        self.without_item: Counter[int] = Counter()
        self.looked = time.monotonic()
        self.elsewhere, self.listed = 0, float("-inf")

    @property
    def waiting(self) -> int:
        """The number of units that a further worker could begin; those of other drivers count at every LOOK."""
        self._look()
        return len(self.todo) + len(self.alone)

    @property
    def remains(self) -> bool:
        """Whether anything is not finished, here or by another driver."""
        return bool(self.todo or self.alone or self.taken or self.open)

    def next(self, host: str) -> Unit | None:
        """The unit that an idle worker on a machine should run; None if there is none for it now."""
        if (host in self.left_out and self._others_work(host)) or not self.gate.look():
            return None
        if self.alone and self.draining in (None, host):
            self.draining = host
            return None if self.busy[host] else self._begin(self.alone.popleft(), host)
        if self.draining == host:
            return None
        self._look()
        begun = time.monotonic()
        while self.todo:
            unit = self.todo.popleft()
            # Asked before the lease is taken, which costs more, and again with it.
            done = self.ledger.is_done(unit.index)
            if not done and not self.ledger.claim(unit.index):
                self.taken.append(unit)
            elif done or self.ledger.is_done(unit.index):
                self.ledger.release(unit.index)
                self.on_event(finished(unit, ELSEWHERE))
                self._strike_out()
            else:
                return self._begin(unit, host)
            if time.monotonic() - begun > 1.0:  # workers report meanwhile
                return None
        return self._slow(host)

    def finished(self, unit: Unit, host: str) -> None:
        """A worker has made the result of a unit durable."""
        self._ended(host)
        if opened := self.open.pop(unit.index, None):
            self.seconds.append(time.monotonic() - opened.started)
            self.ledger.release(unit.index)
            self.on_event(finished(unit))

    def is_open(self, unit: Unit) -> bool:
        """Whether a unit that runs is still wanted: a second run of it may have finished."""
        return unit.index in self.open

    def reported(self, event: Event, host: str) -> None:
        """A worker has reported."""
        opened = self.open.get(event.unit)
        if event.ends_item and opened and event.item not in opened.skipped:
            self.lost_in_a_row.pop(host, None)
        self.on_event(event)

    def given_back(self, unit: Unit, host: str) -> None:
        """A unit is not finished, and its worker is not lost: it, or its machine, had to go."""
        self._ended(host)
        self._again(unit, host)

    def lost(self, unit: Unit, last: Event | None, cause: str, host: str, is_memory: bool = False) -> None:
        """A worker was lost, and its machine was not.

        Raises:
            WorkersKeepDying: no item can be the cause.
        """
        was_alone, item = self.draining == host, last.item if last else None
        self._ended(host)
        loss = Loss(item, last.stage if last else "start", cause, host, is_memory, not is_memory or was_alone)
        self.ledger.record(unit.index, [*self.ledger.losses(unit.index), loss])
        if not is_memory and self._is_bad(host, unit, item):
            self._leave_out(host)
        elif loss.blamed and (item is None or item in unit.skipped):
            self.without_item[unit.index] += 1
            if self.without_item[unit.index] >= ATTEMPTS:
                where = f"at stage {last.stage} of unit {unit.index}" if last else "while starting"
                raise WorkersKeepDying(f"{ATTEMPTS} workers died {where} (the last one {cause}); --inline shows more")
        if is_memory:
            self.lone.add(unit.index)
        self._again(unit, host)

    def _begin(self, unit: Unit, host: str) -> Unit:
        opened = self.open.setdefault(unit.index, _Open(unit, []))
        opened.hosts.append(host)
        self.busy[host] += 1
        own = self._without_the_fatal(unit)
        opened.skipped |= own.skipped.keys()
        return own

    def _ended(self, host: str) -> None:
        self.busy[host] -= 1
        if self.draining == host and not self.busy[host]:
            self.draining = None

    def _again(self, unit: Unit, host: str) -> None:
        """A run of a unit has ended without a result; it begins again unless another run of it goes on."""
        opened = self.open.get(unit.index)
        if opened is None:
            return
        opened.hosts.remove(host)
        if not opened.hosts:
            del self.open[unit.index]
            (self.alone if unit.index in self.lone else self.todo).appendleft(opened.unit)

    def _without_the_fatal(self, unit: Unit) -> Unit:
        """A unit without the items that ATTEMPTS workers were lost to, and with those to watch to which any was."""
        of: dict[int, list[Loss]] = {}
        for loss in self.ledger.losses(unit.index):
            if loss.item is not None and loss.blamed:
                of.setdefault(loss.item, []).append(loss)
        skipped = {
            item: f"its worker {losses[-1].cause} at stage {losses[-1].stage}, the last of {ATTEMPTS} that were lost to it"
            for item, losses in of.items()
            if len(losses) >= ATTEMPTS
        }
        return replace(unit, skipped={**skipped, **unit.skipped}, watched=frozenset(of))

    def _is_bad(self, host: str, unit: Unit, item: int | None) -> bool:
        """Whether a machine has lost different items in a row and finished none, while there are others that work."""
        row = self.lost_in_a_row.setdefault(host, {})
        row[item] = unit
        return len(row) >= ENOUGH and self._others_work(host)

    def _others_work(self, host: str) -> bool:
        """Whether units run on other machines that are not left out."""
        return any(count > 0 for other, count in self.busy.items() if other != host and other not in self.left_out)

    def _leave_out(self, host: str) -> None:
        """Give a machine nothing more, and take back what its losses were blamed on."""
        self.left_out.add(host)
        for unit in self.lost_in_a_row.pop(host).values():
            losses = self.ledger.losses(unit.index)
            self.ledger.record(unit.index, [replace(x, blamed=x.blamed and x.host != host) for x in losses])
        print(f"{host} is left out: {ENOUGH} items in a row were lost there, and none was finished", file=sys.stderr)

    def _look(self) -> None:
        """Consider again, now and then, what other drivers hold."""
        if self.taken and time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            self.todo.extend(self.taken)
            self.taken.clear()

    def _strike_out(self) -> None:
        """Leave out all units that other drivers have finished, by one listing: one by one takes minutes on object stores."""
        self.elsewhere += 1
        if self.elsewhere % ENOUGH or time.monotonic() - self.listed < LISTING:
            return
        self.listed = time.monotonic()
        done = set(self.ledger.all_done())
        struck = [unit for unit in self.todo if unit.index in done]
        self.todo = deque(unit for unit in self.todo if unit.index not in done)
        for unit in struck:
            self.on_event(finished(unit, ELSEWHERE))

    def _slow(self, host: str) -> Unit | None:
        """The slowest unit that runs, to be run a second time: its bytes are the same, and its record is written last."""
        once = [one for one in self.open.values() if len(one.hosts) == 1 and not self.draining]
        if self.taken or self.todo or not once or len(self.seconds) < ENOUGH:
            return None
        slowest = min(once, key=lambda one: one.started)
        # With losses its two runs might leave out different items, and their bytes would differ.
        if time.monotonic() - slowest.started < SLOW * median(self.seconds) or self.ledger.losses(slowest.unit.index):
            return None
        return self._begin(slowest.unit, host)
