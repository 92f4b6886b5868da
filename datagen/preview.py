"""Protocols for judging a head from a few small views, before all of its views are made."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa


@runtime_checkable
class Judge(Protocol):
    """Judges heads from small views: of every identity the same directions (degrees), at `resolution` pixels."""

    azimuth: tuple[float, ...]
    elevation: tuple[float, ...]
    resolution: int

    def __call__(self, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> str | None:
        """The reason to reject a head, or None.

        Args:
            row: the number of the identity and its facts, as columns of the identities table.
            views: the camera columns of the views.
            pictures: rgb and alpha of the views, as bytes.
        """
        ...


@runtime_checkable
class Rejection(Protocol):
    """The settings of a judge, which are sent to workers that open it."""

    def lineage(self, source: str) -> dict[str, Any]:
        """The record in dataset.json of the settings that decide which heads of a source are rejected, as JSON values."""
        ...

    def open(self, device: str, source: str) -> Judge:
        """The judge of heads of a source, with its weights loaded; raises UserError for files that cannot be used."""
        ...
