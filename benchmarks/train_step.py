"""The training step: operations of the released size, and the small model beside a plain loop (a GPU: `make gpu`).

    python benchmarks/train_step.py

The plain loop does the same work as one of diffusers' training examples would: views concatenated to one batch, standard
attention processors replaced by ours (they know no views), a loss written out, AdamW, and one average of the weights.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from train.diffusion.config import Objective
from train.diffusion.process import EDM, append_dims, draw, losses
from train.families.presets import HEADS64_RUN
from train.families.spinmeround.config import SpinMeRoundConfig
from train.families.spinmeround.model import NullCondition, SpinMeRoundConditions, SpinMeRoundNetwork
from train.networks.config import RayMaps
from train.networks.model import autocast, resolve_precision
from train.run.config import EmaConfig, OptimizerConfig
from train.run.log import forward_flops
from train.run.optimizer import Ema, Optimizer, clip

VIEWS, GIVEN = 8, 1


@dataclass(frozen=True)
class Config:
    """Measure training steps."""

    steps: int = 8
    """Steps of each measurement, after two that do not count."""
    rounds: int = 5
    """Pairs of measurements in turn."""


def inputs(
    shape: SpinMeRoundConfig, scenes: int, cells: int, tokens: int, device: str, views: int = VIEWS
) -> tuple[SpinMeRoundConditions, Tensor]:
    """Random scenes, the first view of each given."""
    g = torch.Generator(device).manual_seed(0)
    channels = 4 * (1 + shape.normals)
    latents = torch.randn(scenes, views, channels, cells, cells, device=device, generator=g)
    assert isinstance(shape.rays, RayMaps)
    rays = torch.randn(scenes, views, shape.rays.channels, cells, cells, device=device, generator=g)
    context = torch.randn(scenes, tokens, shape.unet.context, device=device, generator=g)
    is_condition = (torch.arange(views, device=device) < GIVEN).expand(scenes, -1)
    null = NullCondition(torch.zeros(latents.shape[2:], device=device), torch.zeros(context.shape[1:], device=device))
    return SpinMeRoundConditions(latents, is_condition, rays, context, null), latents


def ours(
    network: SpinMeRoundNetwork,
    scene: SpinMeRoundConditions,
    latents: Tensor,
    forward: Callable[..., Tensor] | None = None,
) -> Callable[[], None]:
    """A step as the trainer takes it; `forward` is the network as its ranks run it, if it is not the network itself."""
    optimizer, ema = Optimizer(network, OptimizerConfig()), Ema(network, EmaConfig(sigma_rel=(), half_life=50_000))
    objective, process, places = Objective(), EDM(), count()

    def step() -> None:
        draws = draw(objective, 0, [next(places) for _ in range(len(latents))], latents, len(scene.droppable))
        with autocast("auto", latents.device):
            sigma = process.sample_sigma(draws.level, scene.is_target.sum(1).float())
            loss = losses(forward or network, process, scene.dropped(draws.drop), latents, draws.noise, sigma)
            (loss.sum() / len(latents)).backward()
        optimizer.step(clip(network.parameters(), 1.0), 1e-5)
        ema.update(1_000_000, len(latents))

    return step


def plain(shape: SpinMeRoundConfig, scene: SpinMeRoundConditions, latents: Tensor) -> Callable[[], None]:
    """The same work, written the straightforward way."""
    network = SpinMeRoundNetwork(shape).to(latents.device)
    unet = network.unet
    adam = torch.optim.AdamW(network.parameters(), 1e-5)
    average = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    process, scenes = EDM(), len(latents)

    def step() -> None:
        noise = torch.randn_like(latents)
        sigma = process.sample_sigma(torch.randn(scenes), torch.full((scenes,), float(VIEWS - GIVEN)))
        c_in, c_noise = process.scalings(sigma)[2:]
        noisy = torch.where(scene.given, latents, latents + append_dims(sigma, latents) * noise) * append_dims(
            c_in, latents
        )
        hidden = torch.cat([noisy, scene.rays, (~scene.given).float().expand_as(latents[:, :, :1])], 2)
        with autocast("auto", "cpu"):
            out = unet(
                hidden.flatten(0, 1),
                c_noise.repeat_interleave(VIEWS),
                scene.context.repeat_interleave(VIEWS, 0),
                cross_attention_kwargs={"views": VIEWS, "banks": None},
            ).sample.unflatten(0, (scenes, VIEWS))
        wanted = (noise - append_dims(sigma, latents) * latents) / (append_dims(sigma, latents) ** 2 + 1).sqrt()
        (out.float() - wanted)[:, GIVEN:].square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                average[name].mul_(0.9999).add_(weight, alpha=1 - 0.9999)

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """Seconds of one step."""
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begun) / steps


def flops(shape: SpinMeRoundConfig, cells: int, tokens: int, views: int = VIEWS) -> float:
    """Floating-point operations of one scene forward."""
    with torch.device("meta"):
        network = SpinMeRoundNetwork(shape)
    return forward_flops(network, *inputs(shape, 1, cells, tokens, "cpu", views))


def on_cpu(config: Config) -> None:
    shape = HEADS64_RUN.model
    assert isinstance(shape, SpinMeRoundConfig)
    table = Table("network", "views", "TFLOP of a scene forward", title="Operations")
    for views, cells in ((8, 64), (4, 64), (1, 64), (8, 32)):
        table.add_row(
            f"SpinMeRound, {8 * cells} px", str(views), f"{flops(SpinMeRoundConfig(), cells, 77, views) / 1e12:.2f}"
        )
    table.add_row("heads64", "8", f"{flops(shape, 16, 1) / 1e12:.4f}")
    Console().print(table)
    scene, latents = inputs(shape, 4, 16, 1, "cpu")
    pair = ours(SpinMeRoundNetwork(shape), scene, latents), plain(shape, scene, latents)
    for step in pair:
        seconds(step, 2)
    found = [[seconds(step, config.steps) for step in pair] for _ in range(config.rounds)]
    ratios = sorted(b / a for a, b in found)
    precision = resolve_precision("auto", "cpu")
    table = Table(
        "",
        "s of a step of 4 scenes (median)",
        title=f"heads64, {torch.get_num_threads()} threads, {precision}",
    )
    for name, times in zip(("ours", "plain loop"), zip(*found, strict=True), strict=True):
        table.add_row(name, f"{sorted(times)[len(times) // 2]:.2f}")
    Console().print(table, f"plain / ours: median {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    on_cpu(tyro.cli(Config))
