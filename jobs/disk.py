"""Holds back new work while the disk of a dataset is too full, so that a job waits for space instead of failing."""

import shutil
import sys
import time

from manifests.storage import Storage

LOOK = 10.0
"""Seconds between two looks at the disk."""


class DiskGate:
    """Whether there is space on the disk of a local storage; other storages have no limit."""

    def __init__(self, storage: Storage, limit: float):
        """`limit` is the largest share of the disk in use, from 0 to 1."""
        self.root, self.limit = storage.root if storage.is_local else None, limit
        self.is_open = True
        self._looked = float("-inf")

    def look(self) -> bool:
        """Whether work may begin; prints a line when that changes."""
        if self.root is not None and self.limit < 1 and time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            total, _, free = shutil.disk_usage(self.root)
            used = 1 - free / total
            if (used <= self.limit) != self.is_open:
                self.is_open = not self.is_open
                what = "there is space again" if self.is_open else "no shard is begun until there is space"
                print(
                    f"the disk of {self.root} is {used:.1%} full, --max-disk is {self.limit:g}: {what}", file=sys.stderr
                )
        return self.is_open
