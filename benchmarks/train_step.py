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

from train.diffusion.config import NoiseLevels, Objective
from train.diffusion.edm import like, scalings
from train.diffusion.objective import draw, losses
from train.diffusion.precision import autocast, resolve_precision
from train.diffusion.scene import Nothing, Scene
from train.networks.config import ModelShape, RayMaps
from train.networks.unet import MultiviewUNet, new_network
from train.run.config import EmaConfig, OptimizerConfig
from train.run.ema import Ema
from train.run.log import forward_flops
from train.run.optimizer import Optimizer
from train.run.parallel import clip
from train.run.presets import HEADS64_RUN

VIEWS, GIVEN = 8, 1


@dataclass(frozen=True)
class Config:
    """Measure training steps."""

    steps: int = 8
    """Steps of each measurement, after two that do not count."""
    rounds: int = 5
    """Pairs of measurements in turn."""


def inputs(shape: ModelShape, scenes: int, cells: int, tokens: int, device: str) -> tuple[Scene, Tensor, Nothing]:
    """Random scenes, the first view of each given."""
    g = torch.Generator(device).manual_seed(0)
    channels = 4 * (1 + shape.normals)
    latents = torch.randn(scenes, VIEWS, channels, cells, cells, device=device, generator=g)
    assert isinstance(shape.rays, RayMaps)
    rays = torch.randn(scenes, VIEWS, shape.rays.channels, cells, cells, device=device, generator=g)
    context = torch.randn(scenes, tokens, shape.unet.context, device=device, generator=g)
    is_condition = (torch.arange(VIEWS, device=device) < GIVEN).expand(scenes, -1)
    nothing = Nothing(torch.zeros_like(latents[0, 0]), torch.zeros_like(context[0]))
    return Scene(latents, is_condition, rays, context), latents, nothing


def ours(
    network: MultiviewUNet,
    scene: Scene,
    latents: Tensor,
    nothing: Nothing,
    forward: Callable[..., Tensor] | None = None,
) -> Callable[[], None]:
    """A step as the trainer takes it; `forward` is the network as its ranks run it, if it is not the network itself."""
    optimizer, ema = Optimizer(network, OptimizerConfig()), Ema(network, EmaConfig(sigma_rel=(), half_life=50_000))
    objective, places = Objective(), count()

    def step() -> None:
        draws = draw(objective, 0, [next(places) for _ in range(len(latents))], latents)
        with autocast("auto", latents.device):
            (losses(forward or network, scene, latents, draws, objective, nothing).sum() / len(latents)).backward()
        optimizer.step(clip(network.parameters(), 1.0), 1e-5)
        ema.update(1_000_000, len(latents))

    return step


def plain(shape: ModelShape, scene: Scene, latents: Tensor) -> Callable[[], None]:
    """The same work, written the straightforward way."""
    network = new_network(shape).to(latents.device)
    unet = network.unet
    adam = torch.optim.AdamW(network.parameters(), 1e-5)
    average = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    levels, scenes = NoiseLevels(), len(latents)

    def step() -> None:
        noise = torch.randn_like(latents)
        sigma = levels.sigma(torch.randn(scenes), torch.full((scenes,), float(VIEWS - GIVEN)))
        c_in, c_noise = scalings(sigma)[2:]
        noisy = torch.where(scene.given, latents, latents + like(sigma, latents) * noise) * like(c_in, latents)
        hidden = torch.cat([noisy, scene.rays, (~scene.given).float().expand_as(latents[:, :, :1])], 2)
        with autocast("auto", "cpu"):
            out = unet(
                hidden.flatten(0, 1),
                c_noise.repeat_interleave(VIEWS),
                scene.context.repeat_interleave(VIEWS, 0),
                cross_attention_kwargs={"views": VIEWS, "banks": None},
            ).sample.unflatten(0, (scenes, VIEWS))
        wanted = (noise - like(sigma, latents) * latents) / (like(sigma, latents) ** 2 + 1).sqrt()
        (out.float() - wanted)[:, GIVEN:].square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                average[name].mul_(0.9999).add_(weight, alpha=1 - 0.9999)

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """Of one step."""
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begun) / steps


def flops(shape: ModelShape, cells: int, tokens: int, views: int = VIEWS) -> float:
    with torch.device("meta"):
        return forward_flops(new_network(shape), views, cells, tokens)


def on_cpu(config: Config) -> None:
    table = Table("network", "views", "TFLOP of a scene forward", title="Operations")
    for views, cells in ((8, 64), (4, 64), (1, 64), (8, 32)):
        table.add_row(f"SpinMeRound, {8 * cells} px", str(views), f"{flops(ModelShape(), cells, 77, views) / 1e12:.2f}")
    table.add_row("heads64", "8", f"{flops(HEADS64_RUN.model, 16, 1) / 1e12:.4f}")
    Console().print(table)
    shape = HEADS64_RUN.model
    scene, latents, nothing = inputs(shape, 4, 16, 1, "cpu")
    pair = ours(new_network(shape), scene, latents, nothing), plain(shape, scene, latents)
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
