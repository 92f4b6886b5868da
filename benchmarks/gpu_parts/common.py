"""Shared by the parts: their budget of time, the tables they yield, and the timing of a GPU."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Budget:
    """Where a part runs, at what size, and until when."""

    device: str
    toy: bool
    end: float
    """The moment of time.monotonic() at which a part should be done."""
    folder: Path
    preset: str = "heads64"

    def left(self) -> float:
        """Seconds that are left; negative when the time is over."""
        return self.end - time.monotonic()


@dataclass
class Table:
    """Figures with a title; rows are added as they are measured."""

    title: str
    columns: Sequence[str]
    note: str = ""
    rows: list[list[Any]] = field(default_factory=list)

    def add(self, *cells: Any) -> "Table":
        assert len(cells) == len(self.columns), (self.title, cells)
        self.rows.append([_cell(cell) for cell in cells])
        return self

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The last row with the names of its columns, for the log."""
        cells = ", ".join(f"{name} {cell}" for name, cell in zip(self.columns, self.rows[-1], strict=True))
        return f"   {self.title}: {cells}"


def _cell(cell: Any) -> Any:
    """A figure as it is printed; a figure that the device does not give is left empty."""
    if not isinstance(cell, float):
        return cell
    return "" if math.isnan(cell) else f"{cell:.4g}"


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str, repeats: int = 1, warmup: int = 0) -> float:
    """Wall-clock seconds of one call, the mean of `repeats` after `warmup` calls that are not counted."""
    for _ in range(warmup):
        work()
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return (time.perf_counter() - begun) / repeats


def percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"


def hottest(work: Callable[[], Any], count: int = 8) -> list[tuple[str, float, float]]:
    """The kernels that take longest: name, milliseconds, share."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    return [
        (e.key[:90].replace("|", "/"), e.self_device_time_total / 1e3, e.self_device_time_total / total)
        for e in events[:count]
    ]
