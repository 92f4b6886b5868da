"""Figures of a report: a number, or the reason why there is none."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Figure:
    """One number of a report (`dataclasses.asdict` gives JSON values)."""

    name: str
    value: float | None
    count: int = 0
    """Number of pictures, views, pairs or identities that the value is a mean of."""
    reason: str = ""
    """The reason why there is no value, or empty."""

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason), f"{self.name} needs a value or a reason, and not both"
        assert self.value is None or np.isfinite(self.value), f"{self.name} is {self.value}; give a reason instead"

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.value is None else f"{self.name}: {self.value:.4g} ({self.count})"


def absent(names: Iterable[str], reason: str) -> list[Figure]:
    """Figures that were not measured, all for one reason."""
    return [Figure(name, None, reason=reason) for name in names]


def mean_figure(name: str, values: Float[np.ndarray, " n"], none: str = "there was nothing to measure") -> Figure:
    """The mean of values without NaN; `none` is the reason if there are only NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Figure(name, None, reason=none)
    if endless := int(np.isinf(known).sum()):
        return Figure(name, None, len(known), f"infinite for {endless} of {len(known)}, which have no error at all")
    return Figure(name, float(known.mean(dtype=np.float64)), len(known))
