"""Checks that the machine of a worker has the driver's code and versions, and sees the driver's dataset."""

import hashlib
import platform
import socket
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jobs.ledger import Ledger
from manifests.errors import UserError
from manifests.storage import Storage

PACKAGES = ("datagen", "faces", "filters", "geometry", "jobs", "manifests", "train", "weights")
"""Packages whose code runs in workers."""
VERSIONS = ("torch", "numpy", "pyarrow", "pillow", "scikit-image", "embreex", "onnxruntime")
"""Libraries that may change what a worker computes."""


@dataclass(frozen=True)
class Machine:
    """The machine of a worker: its name, and its node of Ray."""

    host: str
    node: str


@dataclass(frozen=True)
class Trust:
    """The code and the versions of a driver, to be compared on the machine of a worker."""

    dataset: str
    driver: str
    has: dict[str, str]

    @classmethod
    def of_driver(cls, ledger: Ledger) -> "Trust":
        """The code and the versions of this process, and its file in the dataset."""
        return cls(ledger.storage.address, ledger.name, what_is_here())

    def check(self, node: str) -> Machine:
        """The machine of this process.

        Raises:
            UserError: it has other code or versions than the driver, or does not see the driver's files in the dataset.
        """
        host = socket.gethostname()
        if differs := [
            f"{name} {own}, the driver {self.has[name]}"
            for name, own in what_is_here().items()
            if own != self.has[name]
        ]:
            raise UserError(f"{host} has {'; '.join(differs)}; install the same on all machines")
        if not Storage(self.dataset).exists(self.driver):
            raise UserError(
                f"{host} does not see {self.dataset} as the driver does; mount it there at the same path, or give an address "
                "such as s3://bucket/heads"
            )
        return Machine(host, node)


@cache
def what_is_here() -> dict[str, str]:
    """The code of this package, by its hash, and the versions of Python and of the libraries that workers use."""
    root, code = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        code.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    found = {"code of spinset": code.hexdigest()[:12], "Python": ".".join(platform.python_version_tuple()[:2])}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an extra
            found[name] = "missing"
    return found
