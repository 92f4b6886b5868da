"""What a person and their tools see of a run: a live line, log.jsonl, TensorBoard, and Weights & Biases if asked."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from manifests.errors import UserError

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
"""Dense bf16 FLOP/s of devices by a part of their name, as their makers give them."""


QUIET = 10.0
"""Seconds without a line after which one that estimates the time left is written to a log file."""


class Log:
    """The log of the first rank; other ranks hold one that keeps silent."""

    def __init__(self, run: Path, total: int, seen: int, speaks: bool, wandb: str = "", settings: Any = None):
        self.total, self.speaks, self.path = total, speaks, run / "log.jsonl"
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("train", total=total, completed=seen, note="")
        self._file = self._board = self._wandb = None
        self._begun = seen, time.monotonic()
        self._said: float | None = None
        """When the last line was written, if any was."""
        if speaks:
            run.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
            # Importing it takes a second, and ranks that are silent need it not.
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=seen)
            self._wandb = open_wandb(wandb, run, settings) if wandb else None

    def __enter__(self) -> "Log":
        if self.speaks and self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, seen: int, numbers: dict[str, float], note: str = "") -> None:
        """One line of numbers at so many samples; `note` is what a person reads of them."""
        if not self.speaks:
            return
        assert self._file is not None
        assert self._board is not None
        self._file.write(json.dumps({"samples": seen, "time": round(time.time(), 3), **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, seen)
        if self._wandb is not None:
            self._wandb.log(numbers, step=seen)
        if self.console.is_terminal:
            self.bar.update(self.task, completed=seen, note=note)
        elif note:
            self._said = time.monotonic()
            self.console.print(f"train: {seen} of {self.total}, {note}", soft_wrap=True)

    def tick(self, seen: int) -> None:
        """Show that a step was taken: on a terminal at once, elsewhere after the first and then every QUIET seconds."""
        if not self.speaks:
            return
        if self.console.is_terminal:
            self.bar.update(self.task, completed=seen)
            return
        now = time.monotonic()
        if self._said is None or now - self._said > QUIET:
            rate = (seen - self._begun[0]) / (now - self._begun[1])
            left = timedelta(seconds=round((self.total - seen) / rate))
            line = f"train: {seen} of {self.total}, {rate:.3g} samples/s, about {left} left"
            self.console.print(line, soft_wrap=True)
            self._said = now

    def picture(self, seen: int, name: str, pixels: Any) -> None:
        """A picture, height x width x 3 bytes."""
        if self._board is not None:
            self._board.add_image(name, pixels, seen, dataformats="HWC")


def open_wandb(project: str, run: Path, settings: Any) -> Any:
    """A run of Weights & Biases; raises ValueError if it is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("--wandb needs the package wandb; install it, or leave the option out") from error
    return wandb.init(project=project, dir=str(run), config=settings, name=run.name, id=run.name, resume="allow")


class Meter:
    """Counts what passed since the last line of the log."""

    def __init__(self, device: torch.device, flops: float, world: int):
        self.device, self.flops = device, flops
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = next((value for part, value in PEAK.items() if part in name), 0.0)
        self.peak = peak * world
        self.reset()

    def reset(self) -> None:
        self.started, self.waited, self.samples, self.steps = time.perf_counter(), 0.0, 0, 0
        self.losses = torch.zeros(2, device=self.device)
        """The sum of the losses of scenes, and their number, of those that are finite."""

    def add(self, losses: torch.Tensor) -> None:
        """Count the losses of some scenes."""
        finite = torch.isfinite(losses)
        self.losses += torch.stack([torch.where(finite, losses, 0).sum(), finite.sum()])

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training."""
        begun = time.perf_counter()
        yield
        self.started += time.perf_counter() - begun

    def numbers(self, seen: int, total: int) -> tuple[dict[str, float], str]:
        """Throughput and time left; memory and the share of the peak where the device has them."""
        seconds = time.perf_counter() - self.started
        rate = self.samples / seconds
        found = {"samples_per_s": rate, "data_wait": self.waited / seconds}
        note = f"{rate:.3g} samples/s, waited {100 * found['data_wait']:.1f}% for data"
        if self.peak:
            found["mfu"] = 3 * self.flops * rate / self.peak
            note += f", {100 * found['mfu']:.0f}% MFU"
        if self.device.type == "cuda":
            found["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            note += f", {found['memory_gb']:.1f} GB"
        return found, f"{note}, {timedelta(seconds=round((total - seen) / rate))} left"


def forward_flops(network: Any, views: int, cells: int, tokens: int) -> float:
    """Floating-point operations of one scene forward, counted on a network without memory (on the meta device)."""
    from torch.utils.flop_counter import FlopCounterMode

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, device="meta")

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(
            empty(views, network.latents, cells, cells),
            empty(views, network.condition, cells, cells),
            torch.empty(1, device="meta"),
            empty(tokens, network.shape.context),
        )
    return float(counter.get_total_flops())
