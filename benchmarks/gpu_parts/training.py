"""A training step of the released size: time, share of the peak and memory, by scenes and by what is switched on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from train_step import VIEWS, flops, inputs, ours

from gpu_parts.common import Budget, Table, hottest, percent, seconds
from train.families.spinmeround.config import SpinMeRoundConfig
from train.families.spinmeround.model import SpinMeRoundNetwork
from train.networks.config import IdentityShape, UNetShape
from train.networks.unet import checkpoint_activations, compile_blocks
from train.run.log import PEAK
from train.run.parallel import distribute, process_group

TOY_SHAPE = SpinMeRoundConfig(
    UNetShape(channels=(16, 32), attention=(False, True), blocks=1, heads=2, context=512, groups=8),
    identity=IdentityShape("token", 512),
)


@dataclass(frozen=True)
class Variant:
    """Options of one measurement."""

    scenes: int = 2
    compile: bool = False
    checkpointing: bool = False
    channels_last: bool = False
    tuned: bool = False
    """cuDNN tries its convolution kernels for every shape first."""
    fsdp: bool = False

    @property
    def name(self) -> str:
        on = [n for n in ("compile", "checkpointing", "channels_last", "tuned", "fsdp") if getattr(self, n)]
        return ", ".join(on) or "plain"


BEST = Variant(scenes=4, compile=True, tuned=True)
KERNELS = ("kernel", "ms", "share")
VARIANTS = (
    Variant(),
    Variant(tuned=True),
    Variant(channels_last=True, tuned=True),
    Variant(scenes=4, tuned=True),
    BEST,
    Variant(scenes=8, checkpointing=True, tuned=True),
    Variant(fsdp=True, tuned=True),
    Variant(channels_last=True),
    Variant(scenes=1, tuned=True),
    replace(BEST, channels_last=True),
    replace(BEST, scenes=8, checkpointing=True),
)
"""In the order in which they matter, for the time may end."""


def training(budget: Budget) -> Iterator[Table]:
    """A training step of the released size in bf16."""
    device = budget.device
    shape, cells, tokens = (TOY_SHAPE, 8, 1) if budget.toy else (SpinMeRoundConfig(), 64, 77)
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((value for part, value in PEAK.items() if part in name), float("nan"))
    work = 3 * flops(shape, cells, tokens)
    table = Table(
        f"Training step in bf16, {VIEWS} views of {8 * cells} px",
        ("scenes", "switched on", "ms", "scenes/s", "of peak", "GB", "s before the first step"),
        note=f"{work / 1e12:.1f} TFLOP a scene forward and backward; the peak is the maker's dense bf16 figure. AdamW is "
        "always fused, for only then a step whose gradients are not finite is skipped without waiting for the device.",
    )
    for variant in VARIANTS[:3] if budget.toy else VARIANTS:
        # Compiling takes two minutes the first time; the blocks of another number of scenes are compiled anew.
        if budget.left() < (0 if budget.toy else 15 + 140 * variant.compile):
            continue
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with ExitStack() as stack:
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=variant.tuned))
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
        if device == "cuda" and variant == VARIANTS[1]:
            profile = Table(f"Where a step of {variant.scenes} scenes spends its time ({variant.name})", KERNELS)
            for kernel, spent, part in hottest(step, 16):
                yield profile.add(kernel, spent, percent(part))
        del step


def step_of(
    variant: Variant, shape: SpinMeRoundConfig, cells: int, tokens: int, device: str, stack: ExitStack
) -> Callable[[], None]:
    """A step as the trainer takes it."""
    scene, latents = inputs(shape, variant.scenes, cells, tokens, device)
    network = SpinMeRoundNetwork(shape).to(device)
    if variant.channels_last:
        network.to(memory_format=torch.channels_last)
    if variant.checkpointing:
        checkpoint_activations(network)
    if variant.compile and device == "cuda":
        compile_blocks(network)
    forward = None
    if variant.fsdp:
        forward = distribute(network, stack.enter_context(process_group(device)), sharded=True, bf16=True)
    return ours(network, scene, latents, forward)
