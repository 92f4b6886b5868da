"""An estimate with the bounds of its confidence interval."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Interval:
    """An estimated number, such as seconds or bytes, and the bounds of its 90 % confidence interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(factor * self.value, factor * self.low, factor * self.high)

    def as_time(self) -> str:
        """The number and its bounds as durations; they must be seconds."""
        value, low, high = (str(timedelta(seconds=round(x))) for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"
