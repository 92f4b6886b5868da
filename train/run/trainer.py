"""The training run, top to bottom: open everything, go on where the last one stopped, step, log, look, save.

One counter rules: `seen`, the scenes that all ranks together have trained on. The learning rate, the averages, the order
of the data and every draw are functions of it, so a run is the same however often it is stopped, and on any number of ranks.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
from jaxtyping import Float
from torch import Tensor

from manifests.errors import UserError
from train.data.batch import Batch
from train.data.loader import open_loader
from train.diffusion.objective import draw, gaussian, losses
from train.diffusion.precision import autocast, precision_line, resolve_precision
from train.networks.model import Model
from train.run.checkpoint import Checkpoints
from train.run.config import TrainConfig
from train.run.ema import Ema
from train.run.log import Log, Meter
from train.run.optimizer import Optimizer
from train.run.parallel import Ranks, clip, gathering, joined, spread
from train.run.run_folder import MODEL, export, snapshot, write_config
from train.run.start import (
    about_run,
    lineage,
    loader_config,
    named_tensors,
    open_model,
    prepared,
    resolution_of,
    resume,
    scene_flops,
)
from train.run.validate import draw_grid, level_losses, open_validation, save_picture, scene_of


def run(config: TrainConfig) -> Path:
    """Train, and return the folder of the model; the same config goes on where it was stopped.

    Raises:
        FileNotFoundError, ValueError: whatever is known to go wrong, before the first step, in one line.
        KeyboardInterrupt: it was asked to stop (SIGTERM, Ctrl-C), and has saved where it is.
    """
    with joined(config.device) as ranks, stop_signals() as stop:
        config, precision = with_precision(config, ranks)
        accumulation, out = config.accumulation(ranks.world), Path(config.out)
        model = open_model(config, ranks.device)
        loader = open_loader(loader_config(config), ranks.rank, ranks.world)
        validation = open_validation(config, model) if config.validation.data else None
        network = spread(prepared(config, model), ranks, config.strategy == "fsdp", config.precision == "bf16")
        optimizer, ema = Optimizer(model.network, config.optim), Ema(model.network, config.ema)
        nothing = model.nothing(resolution_of(config))
        checkpoints = Checkpoints(out, ranks, config.keep)
        tensors = named_tensors(model.network, optimizer, ema)
        seen = resume(config, checkpoints, tensors, optimizer, loader)
        if ranks.is_first:
            write_config(config, out)
            print(precision, file=sys.stderr, flush=True)
        batch_size = config.loader.batch
        meter = Meter(ranks.device, scene_flops(model, config, nothing), ranks.world)
        in_precision = autocast(config.precision, ranks.device)

        def save() -> None:
            about = {"seen": seen, "steps": optimizer.steps, **lineage(config, loader)}
            checkpoints.save(tensors, seen, about)

        def look() -> None:
            if validation is None:
                return
            with ema.in_place(), in_precision:
                found = level_losses(model, network, validation, config, nothing)
                drawn = [draw_grid(model, network, validation, config, nothing)] if config.validation.pictures else []
            log.write(seen, found, f"validation loss {found['validation/loss']:.4f}")
            for pixels in drawn if ranks.is_first else []:
                save_picture(pixels, out / "samples" / f"{seen:012d}.png")
                log.picture(seen, "samples", pixels)

        with Log(out, config.samples, seen, ranks.is_first, config.wandb, config.as_json()) as log:
            batches = iter(loader)
            while seen < config.samples:
                waiting = time.perf_counter()
                batch = next(batches).to(ranks.device, non_blocking=True)
                meter.waited += time.perf_counter() - waiting
                for micro in range(accumulation):
                    part = batch.part(slice(micro * config.micro, (micro + 1) * config.micro))
                    places = [seen + ranks.rank + ranks.world * (micro * config.micro + i) for i in range(len(part))]
                    latents = latents_of(model, part, config.seed, places)
                    if meter.steps == 0:
                        check_finite(part, latents)
                    draws = draw(config.objective, config.seed, places, latents)
                    with gathering(network, last=micro == accumulation - 1), in_precision:
                        scene = scene_of(model, part, latents, nothing)
                        loss = losses(network, scene, latents, draws, config.objective, nothing)
                        # Gradients are averaged over the ranks, while the loss is a sum over them.
                        (loss.sum() * ranks.world / batch_size).backward()
                    meter.add(loss.detach())
                seen, before = seen + batch_size, seen
                norm = clip(model.network.parameters(), config.optim.clip)
                optimizer.step(norm, config.optim.rate(seen, config.samples))
                ema.update(seen, batch_size)
                meter.steps, meter.samples = meter.steps + 1, meter.samples + batch_size
                is_last = seen >= config.samples
                if meter.steps == config.log_every or is_last:
                    write_numbers(log, meter, optimizer, config, seen, ranks)
                stopping = ranks.any(stop())
                with meter.aside():
                    checkpoints.settle()
                    if passed(before, seen, config.save_every) or is_last or stopping:
                        save()
                    if stopping:
                        checkpoints.finish()
                        raise KeyboardInterrupt
                    if passed(before, seen, config.snapshot_every) or is_last:
                        snapshot(ema, out, seen, ranks)
                    if passed(before, seen, config.validation.every) or is_last:
                        look()
            checkpoints.finish()
        export(replace(model, about=about_run(config, loader, seen)), ema, out, ranks)
        return out / MODEL


def with_precision(config: TrainConfig, ranks: Ranks) -> tuple[TrainConfig, str]:
    """The config with its precision resolved, and a line that states it; auto is bf16 only if every rank has bf16."""
    own = resolve_precision(config.precision, ranks.device)
    common = "fp32" if ranks.any(own == "fp32") else "bf16"
    line = precision_line(config.precision, ranks.device)
    if common != own:
        line = "precision: fp32 (the device of another rank has no bf16 instructions)"
    return replace(config, precision=common), line


def latents_of(model: Model, batch: Batch, seed: int, places: list[int]) -> Float[Tensor, "b v c h w"]:
    """The latents of a batch: cached ones as they come, or of its pictures, drawn from the posterior."""
    assert isinstance(batch.rgb, Tensor)
    if batch.rgb.shape[2] != 3:
        parts = [part for part in (batch.rgb, batch.normal) if part is not None]
        return torch.cat(parts[: 1 + model.shape.normals], 2).float()
    b, v, _, height, width = batch.rgb.shape
    factor, channels = model.vae.factor, model.vae.channels * (1 + model.shape.normals)
    like = batch.rgb.new_empty(b, v, channels, height // factor, width // factor)
    return model.encode(batch.rgb, batch.normal, gaussian(seed, "posterior", places, like))


def check_finite(batch: Batch, latents: Tensor) -> None:
    """Raise ValueError that names the view if latents hold NaN; looked at once per line of the log, for it waits."""
    bad = ~torch.isfinite(latents).flatten(2).all(2)
    if bad.any():
        scene, view = (int(i) for i in bad.nonzero()[0])
        raise UserError(
            f"identity {int(batch.identity[scene])}, view {int(batch.view[scene, view])} holds numbers that are not finite; "
            "check the data with spinset verify --deep, and make its latents anew with spinset latents"
        )


def write_numbers(log: Log, meter: Meter, optimizer: Optimizer, config: TrainConfig, seen: int, ranks: Ranks) -> None:
    """One line of the log; raises ValueError if no step has been taken for too long."""
    total, counted = ranks.mean(meter.losses).tolist()
    # JSON knows no number for a mean of nothing.
    loss = {"loss": total / counted} if counted else {}
    skipped, in_row = int(optimizer.skipped), int(optimizer.skipped_in_row)
    numbers, note = meter.numbers(seen, config.samples)
    rate = config.optim.rate(seen, config.samples)
    missed = f", {skipped} steps skipped" if skipped else ""
    said = f"loss {loss['loss']:.4f}" if loss else "no finite loss"
    log.write(seen, {**loss, "lr": rate, "skipped": skipped, **numbers}, f"{said}, {note}{missed}")
    if in_row >= config.optim.max_skipped:
        raise UserError(
            f"the gradients of {in_row} steps in a row were not finite, at {seen} samples; lower --optim.lr, or try "
            "--precision fp32"
        )
    meter.reset()


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple lies between two counts."""
    return before // every < now // every


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Says whether SIGTERM or Ctrl-C came; the run saves at its next step, and a second Ctrl-C ends it at once."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        # torchrun passes SIGTERM on to workers that a scheduler has told already; only a second Ctrl-C is impatience.
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(number, note) for number in numbers]
    except ValueError:  # not in the main thread, where Ray runs it: signals are its business there
        yield lambda: False
        return
    try:
        yield lambda: came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
