"""A training step of the released size: time, share of the peak and memory, by scenes and by what is switched on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count

import torch
from train_step import VIEWS, flops, inputs

from gpu_parts.common import Budget, Table, percent, seconds
from train.diffusion.objective import Objective, draw, losses
from train.networks.identity import IdentityShape
from train.networks.model import ModelShape
from train.networks.unet import UNetShape
from train.run.ema import Ema, EmaConfig
from train.run.log import PEAK
from train.run.optimizer import Optimizer, OptimizerConfig
from train.run.parallel import clip, joined, spread

TOY_SHAPE = ModelShape(
    UNetShape(channels=(16, 32), attention=(False, True), blocks=1, heads=2, context=512, groups=8),
    identity=IdentityShape("token", 512),
)


@dataclass(frozen=True)
class Variant:
    """What is switched on for one measurement."""

    scenes: int = 2
    compile: bool = False
    checkpointing: bool = False
    channels_last: bool = False
    fused: bool = True
    fsdp: bool = False

    @property
    def name(self) -> str:
        on = [n for n in ("compile", "checkpointing", "channels_last", "fsdp") if getattr(self, n)]
        return ", ".join(on + ([] if self.fused else ["AdamW not fused"])) or "plain"


BEST = Variant(compile=True, channels_last=True)
VARIANTS = (
    Variant(),
    Variant(channels_last=True),
    BEST,
    replace(BEST, scenes=4),
    replace(BEST, scenes=8),
    replace(BEST, scenes=1),
    replace(BEST, scenes=8, checkpointing=True),
    replace(BEST, fsdp=True),
    Variant(scenes=4),
    replace(BEST, fused=False),
    Variant(scenes=8, checkpointing=True),
)
"""In the order in which they matter, for the time may end."""


def training(budget: Budget) -> Iterator[Table]:
    """A training step of the released size in bf16."""
    device = budget.device
    shape, cells, tokens = (TOY_SHAPE, 8, 1) if budget.toy else (ModelShape(), 64, 77)
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((value for part, value in PEAK.items() if part in name), float("nan"))
    work = 3 * flops(shape, cells, tokens)
    table = Table(
        f"Training step in bf16, {VIEWS} views of {8 * cells} px",
        ("scenes", "switched on", "ms", "scenes/s", "of peak", "GB", "s before the first step"),
        note=f"{work / 1e12:.1f} TFLOP a scene forward and backward; the peak is the maker's dense bf16 figure.",
    )
    for variant in VARIANTS[:3] if budget.toy else VARIANTS:
        if budget.left() < (0 if budget.toy else 20 + 25 * variant.compile):
            break
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with ExitStack() as stack:
            try:
                step = step_of(variant, shape, cells, tokens, device, stack)
                first = seconds(step, device)
                taken = seconds(step, device, 2 if budget.toy else 6, warmup=1)
            except torch.OutOfMemoryError:
                yield table.add(variant.scenes, variant.name, "out of memory", "", "", "", "")
                continue
        memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
        share = percent(work * variant.scenes / taken / peak)
        yield table.add(variant.scenes, variant.name, 1000 * taken, variant.scenes / taken, share, memory, first)
        del step
    if device == "cuda" and budget.left() > 15:
        from gpu_parts.panohead import hottest

        with ExitStack() as stack:
            step = step_of(Variant(channels_last=True), shape, cells, tokens, device, stack)
            seconds(step, device, 2)
            profile = Table("Where a step of 2 scenes spends its time (channels_last)", ("kernel", "ms", "share"))
            for kernel, spent, part in hottest(step, 14):
                yield profile.add(kernel, spent, percent(part))


def step_of(
    variant: Variant, shape: ModelShape, cells: int, tokens: int, device: str, stack: ExitStack
) -> Callable[[], None]:
    """A step as the trainer takes it."""
    scene, latents, nothing = inputs(shape, variant.scenes, cells, tokens, device)
    network = shape.network().to(device)
    if variant.channels_last:
        network.to(memory_format=torch.channels_last)
    if variant.checkpointing:
        network.checkpoint_activations()
    if variant.compile and device == "cuda":
        network.compile_blocks()
    run = network
    if variant.fsdp:
        run = spread(network, stack.enter_context(joined(device)), sharded=True, bf16=True)
    optimizer, ema = Optimizer(network, OptimizerConfig()), Ema(network, EmaConfig(sigma_rel=(), half_life=50_000))
    if not variant.fused:
        for group in optimizer.adam.param_groups:
            group["fused"] = False
    objective, places = Objective(), count()

    def step() -> None:
        draws = draw(objective, 0, [next(places) for _ in range(len(latents))], latents)
        with torch.autocast(device, torch.bfloat16):
            (losses(run, scene, latents, draws, objective, nothing).sum() / len(latents)).backward()
        optimizer.step(clip(network.parameters(), 1.0), 1e-5)
        ema.update(1_000_000, len(latents))

    return step
