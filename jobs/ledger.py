"""The files that drivers of a job share in a dataset: who works on which unit, and which workers were lost to it.

A driver takes a lease before it runs a unit, so that several of them (the parts of a job array, or a command that was started
twice) divide the work, and what a dead one held is taken over. Leases save work and are not what keeps a dataset whole: the
bytes of a shard are the same whichever makes it, and its record is written last.

    work/JOB/WRITER            a driver, with its note; it counts up while the driver lives
    work/JOB/leases/UNIT.N     the N-th lease of a unit, with the name of its driver; the highest one counts
    work/JOB/losses/UNIT.json  workers that were lost with this unit, which are kept
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count

from manifests.storage import Storage
from manifests.writers import is_dead, writer_name

BEAT = 15.0
"""Seconds between two signs of life of a driver."""
DEAD = 90.0
"""Seconds without one after which a driver of another machine counts as dead, by the clock of who looks."""


@dataclass(frozen=True)
class Loss:
    """A worker that was lost: the item and the stage that it last reported, what happened to it, and its machine."""

    item: int | None
    stage: str
    cause: str
    host: str
    is_memory: bool = False
    """It ran out of memory, to which other work on the machine may have contributed."""
    blamed: bool = True
    """The item counts as its cause."""


class Ledger:
    """One driver's view of the files; a context manager, which signs on and off."""

    def __init__(
        self,
        storage: Storage,
        job: str,
        is_done: Callable[[int], bool],
        clear: Callable[[int], object] = lambda unit: None,
        remembers: bool = False,
        all_done: Callable[[], Iterable[int]] = lambda: (),
        note: str = "",
    ):
        """`is_done` tells whether a unit's result is there, and `all_done` those of many, perhaps not all, by one listing;
        `clear` removes what a dead driver's workers left of it.

        Losses of earlier commands count if it `remembers`; otherwise the first driver forgets them. Other drivers can read the
        `note`.
        """
        self.storage, self.folder, self.is_done, self.clear = storage, f"work/{job}", is_done, clear
        self.remembers, self.all_done, self.note = remembers, all_done, note
        self._depth = 0
        self.name = f"{self.folder}/{writer_name()}"
        self._held: dict[int, str] = {}
        self._signs: dict[str, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="ledger", daemon=True)

    def __enter__(self) -> "Ledger":
        """Sign on, once where it is nested."""
        self._depth += 1
        if self._depth > 1:
            return self
        for name in self._signed_on():
            if is_dead(name):  # of this machine
                self._remove(f"{self.folder}/{name}")
        self.storage.write(self.name, self._sign(0))
        self._beats.start()
        if not self.remembers and not self.others():
            self.forget()
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._ended.set()
        self._beats.join()
        for unit in list(self._held):
            self.release(unit)
        self._remove(self.name)
        if not self._signed_on():
            for lease in self.storage.names(f"{self.folder}/leases"):  # of drivers that died when their unit was done
                self._remove(f"{self.folder}/leases/{lease}")

    def others(self) -> list[str]:
        """The names of the other drivers of this job that are alive, or on other machines may be."""
        return [name for name in self._signed_on() if not self.name.endswith(name) and not self._is_dead(name)]

    def certain_others(self) -> dict[str, str]:
        """The other drivers that are alive, with their notes; waits for a sign of those on other machines, up to DEAD seconds.

        The files of dead ones are removed.
        """
        alive: dict[str, str] = {}
        first = {name: self._read_sign(name) for name in self.others()}
        begun, said = time.monotonic(), False
        while unknown := [name for name in self.others() if name not in alive]:
            for name in unknown:
                sign = self._read_sign(name)
                if is_dead(name) is False or sign != first.setdefault(name, sign):
                    alive[name] = self.note_of(name)
            if len(alive) < len(self.others()):
                if not said and time.monotonic() - begun > 1.0:
                    print(f"waiting for signs of other commands on {self.storage.url}", file=sys.stderr)
                    said = True
                time.sleep(min(1.0, BEAT))
        for name in self._signed_on():
            if name not in alive and not self.name.endswith(name):
                self._remove(f"{self.folder}/{name}")
        return alive

    def note_of(self, name: str) -> str:
        """The note of another driver; empty if it has signed off."""
        return self._read_sign(name).decode().partition(" ")[2]

    def claim(self, unit: int) -> bool:
        """Take the lease of a unit; False if a living driver has it."""
        for generation in count():
            if unit in self._held:
                return True
            lease = f"{self.folder}/leases/{unit}.{generation}"
            if self.storage.create(lease, self.name.encode()):
                self._held[unit] = lease
                if generation:
                    self.clear(unit)
                continue
            try:
                holder = self.storage.read(lease).decode().rpartition("/")[2]
            except FileNotFoundError:  # just released
                return False
            if not self._is_dead(holder, lease):
                return False
            if holder:  # one that lives signs again
                self._remove(f"{self.folder}/{holder}")
        raise AssertionError

    def release(self, unit: int) -> None:
        """Give the lease of a unit back, if this driver has it, and remove those of dead drivers before it."""
        if unit not in self._held:
            return
        stem, _, generation = self._held.pop(unit).rpartition(".")
        # From the first on, so that no driver finds a gap below a lease that counts.
        for one in range(int(generation) + 1):
            self._remove(f"{stem}.{one}")

    def losses(self, unit: int) -> list[Loss]:
        """The workers that were lost with a unit, in order, also by earlier drivers."""
        try:
            return [Loss(**one) for one in json.loads(self.storage.read(self._losses(unit)))]
        except FileNotFoundError:
            return []

    def record(self, unit: int, losses: list[Loss]) -> None:
        """Keep the losses of a unit; with none, forget them."""
        if losses:
            self.storage.write_json(self._losses(unit), [asdict(loss) for loss in losses])
        elif self.storage.exists(self._losses(unit)):
            self.storage.remove(self._losses(unit))

    def forget(self) -> None:
        """Forget all losses."""
        for name in self.storage.names(f"{self.folder}/losses"):
            self._remove(f"{self.folder}/losses/{name}")

    def _signed_on(self) -> list[str]:
        """The names of drivers that have signed on and not off, dead or alive."""
        return [name for name in self.storage.names(self.folder) if name.count("-") == 2]

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another driver has removed it, to which this one seemed dead
            self.storage.remove(name)

    def _losses(self, unit: int) -> str:
        return f"{self.folder}/losses/{unit}.json"

    def _beat(self) -> None:
        for beat in count(1):
            if self._ended.wait(BEAT):
                return
            try:
                self.storage.write(self.name, self._sign(beat))
            except OSError:
                continue  # The next one may succeed; a worker that writes its shard meets the same error, and reports it.

    def _sign(self, beat: int) -> bytes:
        return f"{beat} {self.note}".strip().encode()

    def _read_sign(self, name: str) -> bytes:
        try:
            return self.storage.read(f"{self.folder}/{name}")
        except FileNotFoundError:  # it has just signed off
            return b""

    def _is_dead(self, writer: str, lease: str = "") -> bool:
        """Whether a driver has ended or gives no sign of life; one of this machine is looked up by its process number.

        A lease without a name is one that is being written, or whose driver died at that.
        """
        if writer and is_dead(writer):
            return True
        try:
            sign = self.storage.read(f"{self.folder}/{writer}") if writer else b""
        except FileNotFoundError:
            return True
        now, key = time.monotonic(), writer or lease
        before, since = self._signs.get(key, (None, now))
        if sign != before:
            self._signs[key] = sign, now
        return sign == before and now - since > DEAD
