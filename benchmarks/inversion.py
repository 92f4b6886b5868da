"""How closely an identity is found again in its own pictures, and what a step costs at the released size.

    python benchmarks/inversion.py                 the golden generator of the tests
    python benchmarks/inversion.py --released      the released sizes with random weights

The first fits the styles of seeds to one picture and to three, without tuning the generator, and compares views that no fit has
seen. The golden generator has random weights, so this measures the search and not what a trained generator knows; its styles
are taken at a part of their strength and in full. The second takes iterations of L-BFGS and steps of tuning on one picture, and
prints seconds and the peak memory of the process.
"""

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from datagen.inversion.config import FitConfig
from datagen.inversion.fit import Fit
from datagen.inversion.objective import Pictures, over_white, psnr, render
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.official import frontal_label, latent
from datagen.sources.panohead.superresolution import resize
from geometry.cameras import Cameras, orbit

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from golden_panohead import gentle, styles
from panohead import release_sized

HELD_OUT = (-60.0, -30.0, 30.0, 60.0, 150.0, -150.0)


@dataclass(frozen=True)
class Config:
    """Measure inversion."""

    seeds: tuple[int, ...] = (7, 8, 9)
    strengths: tuple[float, ...] = (0.3, 1.0)
    """Strengths of the styles, as shares of those of the golden generator."""
    steps: int = 40
    """Iterations of L-BFGS."""
    released: bool = False
    """Measure time and memory at the released size instead."""
    device: str = "cpu"
    threads: int = 1


def around(*azimuths: float) -> Cameras:
    return orbit(np.array(azimuths), np.zeros(len(azimuths)))


@torch.no_grad()
def pictures(network: Generator, ws: torch.Tensor, cameras: Cameras) -> Pictures:
    seen = render(network, ws, cameras)
    return Pictures(over_white(seen), resize(seen.image_mask.clamp(0, 1), seen.image.shape[-1]), cameras)


@torch.no_grad()
def reached(fit: Fit, wanted: Pictures) -> float:
    """The lowest PSNR of views over white."""
    return float(psnr(render(fit.generator, fit.ws, wanted.cameras), wanted).min())


def search(config: Config) -> None:
    print("| strength | seed | average | one picture | other views | three pictures | other views | s |")
    print("|---|---|---|---|---|---|---|---|")
    for strength in config.strengths:
        for seed in config.seeds:
            network, row, begun = gentle(seed, strength), [], time.process_time()
            ws = styles(network, seed)
            held_out = pictures(network, ws, around(*HELD_OUT))
            for azimuths in ((0.0,), (0.0, 120.0, 240.0)):
                given = pictures(network, ws, around(*azimuths))
                fit = Fit(network, given, FitConfig(steps=config.steps, tune_steps=0))
                row += [] if row else [reached(fit, held_out)]
                for _ in fit.run(1):
                    pass
                row += [reached(fit, given), reached(fit, held_out)]
            shown = " | ".join(f"{x:.1f}" for x in row)
            print(f"| {strength:g} | {seed} | {shown} | {time.process_time() - begun:.0f} |", flush=True)


def searches(config: Config) -> None:
    """L-BFGS beside the search of StyleGAN2's projector: Adam, whose rate rises and falls, and noise on the style."""
    network = gentle()
    ws = styles(network)
    given, held_out = pictures(network, ws, around(0.0)), pictures(network, ws, around(*HELD_OUT))
    print("| search | evaluations | one picture | other views |\n|---|---|---|---|")
    for iterations in (20, 40):
        fit = Counted(network, given, FitConfig(iterations, 0))
        for _ in fit.run(1):
            pass
        shown = f"{reached(fit, given):.1f} | {reached(fit, held_out):.1f}"
        print(f"| L-BFGS, {iterations} iterations | {fit.evaluations} | {shown} |", flush=True)
    z = torch.cat([latent(seed, network.config.z_dim) for seed in range(1000)])
    drawn = network.mapping(z, frontal_label().expand(len(z), -1))[:, 0]
    spread = float((drawn - drawn.mean(0)).square().sum(1).mean().sqrt())
    for steps in (50, 200):
        fit, random = Fit(network, given, FitConfig(steps, 0)), torch.Generator().manual_seed(0)
        style = fit.style.clone().requires_grad_()
        optimizer = torch.optim.Adam([style])
        for step in range(steps):
            done = step / steps
            falling = 0.5 - 0.5 * np.cos(np.pi * min(1, (1 - done) / 0.25))
            optimizer.param_groups[0]["lr"] = 0.1 * falling * min(1, done / 0.05)
            noise = 0.05 * spread * max(0, 1 - done / 0.75) ** 2
            fit.style = style + noise * torch.randn(style.shape, generator=random)
            optimizer.zero_grad()
            fit._loss().backward()
            optimizer.step()
        fit.style = style.detach()
        print(f"| Adam with noise | {steps} | {reached(fit, given):.1f} | {reached(fit, held_out):.1f} |", flush=True)


class Counted(Fit):
    """A fit that counts how often its loss was computed."""

    evaluations = 0

    def _loss(self) -> torch.Tensor:
        self.evaluations += 1
        return super()._loss()


def released(config: Config) -> None:
    network = release_sized(config.device)
    ws = network.mapping(latent(0, 512).to(config.device), frontal_label().to(config.device), 0.7, 14)
    given = pictures(network, ws, around(0.0).to(config.device))
    print("| step | evaluations | s each | peak memory, GB |\n|---|---|---|---|")
    for name, settings in (("style", FitConfig(2, 0)), ("tuning", FitConfig(0, 2))):
        fit = Counted(network, given, settings)
        begun = time.perf_counter()
        for _ in fit.run(2):
            pass
        seconds = (time.perf_counter() - begun) / fit.evaluations
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
        if config.device != "cpu":
            peak = torch.cuda.max_memory_allocated() / (1 << 30)
        print(f"| {name} | {fit.evaluations} | {seconds:.1f} | {peak:.1f} |", flush=True)


if __name__ == "__main__":
    chosen = tyro.cli(Config)
    torch.set_num_threads(chosen.threads)
    if chosen.released:
        released(chosen)
    else:
        search(chosen)
        searches(chosen)
