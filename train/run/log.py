"""The log of a run: progress on the screen, log.jsonl, TensorBoard, and Weights & Biases with --wandb."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from torch import Tensor, nn

from manifests.errors import UserError
from train.diffusion.conditions import Conditions
from train.run.optimizer import Optimizer
from train.run.parallel import Ranks

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
"""Dense bf16 FLOP/s of devices by a part of their name, from the data sheets of their makers."""
SILENCE = 5.0
"""Seconds after which progress is shown although no line of the log is due."""


def open_console(is_first: bool) -> Console:
    """A console on stderr for the lines of a run; it stays silent on all ranks but the first."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=not is_first)


class Log:
    """The log of a run; on all ranks but the first it writes nothing."""

    def __init__(
        self, run: Path, total: int, samples_seen: int, console: Console, wandb: str = "", settings: Any = None
    ):
        self.total, self.enabled, self.path = total, not console.quiet, run / "log.jsonl"
        self.console, self._shown = console, float("-inf")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console)
        self.task = self.bar.add_task("train", total=total, completed=samples_seen, note="")
        self._file = self._board = self._wandb = None
        if self.enabled:
            run.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
            # Importing it takes a second, which ranks that write nothing need not spend.
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=samples_seen)
            self._wandb = open_wandb(wandb, run, settings) if wandb else None

    def __enter__(self) -> "Log":
        if self.enabled and self.console.is_terminal:
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

    def write(self, samples_seen: int, numbers: dict[str, float], note: str = "") -> None:
        """Write one line of numbers, and show `note`, their readable form, on the screen."""
        if not self.enabled:
            return
        assert self._file is not None
        assert self._board is not None
        self._file.write(json.dumps({"samples": samples_seen, "time": round(time.time(), 3), **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, samples_seen)
        if self._wandb is not None:
            self._wandb.log(numbers, step=samples_seen)
        if note:
            self._show(samples_seen, note)

    def note(self, samples_seen: int, text: str) -> None:
        """Write a line of text, to the log and to the screen."""
        if not self.enabled:
            return
        assert self._file is not None
        self._file.write(json.dumps({"samples": samples_seen, "time": round(time.time(), 3), "note": text}) + "\n")
        self._file.flush()
        self.console.print(f"train: {text}", soft_wrap=True)

    def heartbeat(self, samples_seen: int, meter: "Meter") -> None:
        """Show speed and time left if nothing was shown for some seconds; the first call always shows them."""
        if self.enabled and time.monotonic() - self._shown > SILENCE:
            self._show(samples_seen, meter.numbers(samples_seen, self.total)[1])

    def _show(self, samples_seen: int, note: str) -> None:
        self._shown = time.monotonic()
        if self.console.is_terminal:
            self.bar.update(self.task, completed=samples_seen, note=note)
        else:
            self.console.print(f"train: {samples_seen} of {self.total}, {note}", soft_wrap=True)

    def picture(self, samples_seen: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Write a picture to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, samples_seen, dataformats="HWC")


def open_wandb(project: str, run: Path, settings: Any) -> Any:
    """Open a run of Weights & Biases; raises UserError if the package is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("--wandb needs the package wandb; install it, or leave the option out") from error
    return wandb.init(project=project, dir=str(run), config=settings, name=run.name, id=run.name, resume="allow")


class Meter:
    """Sums losses, samples and time since the last line of the log."""

    def __init__(self, device: torch.device, world: int):
        self.device, self.flops = device, 0.0
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = next((value for part, value in PEAK.items() if part in name), 0.0)
        self.peak = peak * world
        self.reset()

    def reset(self) -> None:
        self.started, self.data_wait, self.samples, self.steps = time.perf_counter(), 0.0, 0, 0
        self.losses = torch.zeros(2, device=self.device)
        """The sum of the finite losses of scenes, and their number."""

    def add(self, losses: torch.Tensor, samples: int) -> None:
        """Add a micro-batch: the losses of the scenes of this rank, and the number of scenes of all ranks."""
        self.samples += samples
        finite = torch.isfinite(losses)
        self.losses += torch.stack([torch.where(finite, losses, 0).sum(), finite.sum()])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out of the throughput."""
        begun = time.perf_counter()
        yield
        self.started += time.perf_counter() - begun

    def numbers(self, samples_seen: int, total: int) -> tuple[dict[str, float], str]:
        """Throughput, memory in GB and MFU (Chowdhery et al. 2022, appendix B) as numbers, and as text with the time left.

        Memory is known on GPUs alone, MFU on those of `PEAK`.
        """
        seconds = time.perf_counter() - self.started
        rate = self.samples / seconds
        found = {"samples_per_s": rate, "data_wait": self.data_wait / seconds}
        note = f"{rate:.3g} samples/s, waited {100 * found['data_wait']:.1f}% for data"
        if self.peak:
            found["mfu"] = 3 * self.flops * rate / self.peak
            note += f", {100 * found['mfu']:.0f}% MFU"
        if self.device.type == "cuda":
            found["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            note += f", {found['memory_gb']:.1f} GB"
        return found, f"{note}, {timedelta(seconds=round(max(0, total - samples_seen) / rate))} left"


def forward_flops(network: nn.Module, conditions: Conditions, latents: Float[Tensor, "b v c h w"]) -> float:
    """Floating-point operations of a forward pass over the first of some scenes; `network` lies on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(latents[:1].to("meta"), torch.empty(1, device="meta"), conditions[:1].to("meta"))
    return float(counter.get_total_flops())


def write_numbers(
    log: Log, meter: Meter, optimizer: Optimizer, norm: Tensor, seen: int, total: int, ranks: Ranks
) -> None:
    """One line of the log, with the gradient norm of the last step before clipping.

    Raises:
        UserError: too many steps in a row were skipped.
    """
    losses_sum, counted = ranks.mean(meter.losses).tolist()
    # JSON has no number for the mean of an empty set.
    loss = {"loss": losses_sum / counted} if counted else {}
    gradient = {"grad_norm": float(norm)} if torch.isfinite(norm) else {}
    skipped, in_row = int(optimizer.skipped), int(optimizer.skipped_in_row)
    numbers, note = meter.numbers(seen, total)
    rate = optimizer.rate
    missed = f", {skipped} steps skipped" if skipped else ""
    said = f"loss {loss['loss']:.4f}" if loss else "no finite loss"
    said += f", gradient norm {gradient['grad_norm']:.3g}" if gradient else ", gradient norm not finite"
    log.write(
        seen, {**loss, **gradient, "lr": rate, "skipped": skipped, **numbers}, f"{said}, lr {rate:.3g}, {note}{missed}"
    )
    if in_row >= optimizer.config.max_skipped:
        raise UserError(
            f"the gradients of {in_row} steps in a row were not finite, at {seen} samples; lower --optim.lr, or try "
            "--precision fp32"
        )
    meter.reset()
