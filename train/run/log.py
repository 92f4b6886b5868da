"""The log of a run: progress on the screen, log.jsonl, TensorBoard, and Weights & Biases if asked."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch import Tensor, nn

from manifests.errors import UserError
from train.diffusion.conditions import Conditions

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
"""Dense bf16 FLOP/s of devices by a part of their name, as their makers give them."""
SILENCE = 5.0
"""Seconds after which progress is shown although no line of the log is due."""


def open_console(speaks: bool) -> Console:
    """Where the lines of a run go; that of other ranks than the first stays silent."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=not speaks)


class Log:
    """The log of the first rank; other ranks hold one that keeps silent."""

    def __init__(self, run: Path, total: int, seen: int, console: Console, wandb: str = "", settings: Any = None):
        self.total, self.speaks, self.path = total, not console.quiet, run / "log.jsonl"
        self.console, self._shown = console, float("-inf")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("train", total=total, completed=seen, note="")
        self._file = self._board = self._wandb = None
        if self.speaks:
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
        if self.console.is_terminal:
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
        if note:
            self._show(seen, note)

    def note(self, seen: int, text: str) -> None:
        """A line of text, on the screen and in the log."""
        if not self.speaks:
            return
        assert self._file is not None
        self._file.write(json.dumps({"samples": seen, "time": round(time.time(), 3), "note": text}) + "\n")
        self._file.flush()
        self.console.print(f"train: {text}", soft_wrap=True)

    def alive(self, seen: int, meter: "Meter") -> None:
        """Show speed and time left if nothing was shown for some seconds; the first call always shows them."""
        if self.speaks and time.monotonic() - self._shown > SILENCE:
            self._show(seen, meter.numbers(seen, self.total)[1])

    def _show(self, seen: int, note: str) -> None:
        self._shown = time.monotonic()
        if self.console.is_terminal:
            self.bar.update(self.task, completed=seen, note=note)
        else:
            self.console.print(f"train: {seen} of {self.total}, {note}", soft_wrap=True)

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

    def __init__(self, device: torch.device, world: int):
        self.device, self.flops = device, 0.0
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = next((value for part, value in PEAK.items() if part in name), 0.0)
        self.peak = peak * world
        self.reset()

    def reset(self) -> None:
        self.started, self.waited, self.samples, self.steps = time.perf_counter(), 0.0, 0, 0
        self.losses = torch.zeros(2, device=self.device)
        """The sum of the losses of scenes, and their number, of those that are finite."""

    def add(self, losses: torch.Tensor, samples: int) -> None:
        """Count a micro-batch: the losses of this rank's scenes, and the number of all ranks' scenes."""
        self.samples += samples
        finite = torch.isfinite(losses)
        self.losses += torch.stack([torch.where(finite, losses, 0).sum(), finite.sum()])

    @contextmanager
    def paused(self) -> Iterator[None]:
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


def forward_flops(network: nn.Module, conditions: Conditions, latents: Float[Tensor, "b v c h w"]) -> float:
    """Floating-point operations of a forward pass over the first of some scenes; `network` lies on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(latents[:1].to("meta"), torch.empty(1, device="meta"), conditions[:1].to("meta"))
    return float(counter.get_total_flops())
