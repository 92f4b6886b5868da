"""A first look at a head: a few small views that are judged before the rest is made."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa


@runtime_checkable
class Judge(Protocol):
    """Looks at first views; it sees every identity from the same directions (degrees), at `resolution` pixels."""

    azimuth: tuple[float, ...]
    elevation: tuple[float, ...]
    resolution: int

    def __call__(self, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> str | None:
        """Why no more shall be made of this head, or None.

        It is told the identity and its facts, the camera columns of the views, and their rgb and alpha in 255 steps.
        """
        ...


@runtime_checkable
class Rejection(Protocol):
    """The settings of a judge, which travel to workers and open it there."""

    def lineage(self, source: str) -> dict[str, Any]:
        """What decides which heads of this source it rejects (JSON values; goes into dataset.json)."""
        ...

    def open(self, device: str, source: str) -> Judge:
        """The judge of heads of this source, its weights loaded; raises UserError for files that cannot be used."""
        ...
