"""Sampling views all around a head, compared with a straightforward loop.

    python benchmarks/views.py [--model heads64] [--device cpu] [--views 48]

The plain loop evaluates the two branches of guidance one after the other, computes ray maps anew in every evaluation, decodes
and encodes every view between the stages, and computes in fp32. Prints seconds per view, the ratio of the times of both, which
run in turns, and how much their views differ.
"""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from geometry.cameras import orbit
from infer.config import SamplerConfig
from infer.views import ViewSampler, direction_number, open_sampler, plan_views, ring
from train.diffusion.process import denoise, gaussian, initial_latents
from train.networks.model import resolve_precision


@dataclass(frozen=True)
class Config:
    """Measure turntables."""

    model: str = "heads64"
    device: str = "cpu"
    views: int = 48
    steps: int = 10
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the sampler; the plain loop computes in fp32."""
    rounds: int = 3
    threads: int = 2


def plain(sampler: ViewSampler, given: Tensor, person: Tensor, views: int) -> Tensor:
    """Pictures of a turntable by the plain loop, in [-1, 1]."""
    model, process, config = sampler.model, sampler.model.process, sampler.config
    plan = plan_views(ring(views), np.zeros(views))
    latents, sigmas = {0: given}, process.sigmas(config.steps)
    for call in plan.calls:
        places = [*call.given, *call.sampled]
        clean = torch.zeros(1, len(places), *given.shape, device=given.device)
        for at, place in enumerate(call.given):
            # Stages hand over pictures.
            parts = model.decode(latents[place][None, None])
            clean[0, at] = latents[place] if place == 0 else model.encode(parts[0], parts[-1])[0, 0]
        is_condition = torch.tensor([[place in call.given for place in places]], device=given.device)
        shared = model.shared_noise
        sides = zip(plan.azimuth[places].tolist(), plan.elevation[places].tolist(), strict=True)
        seeds = [0 if shared else direction_number(*side) for side in sides]
        noise = gaussian(config.seed, "view noise", seeds, clean[0])[None]
        x = initial_latents(noise, sigmas[0], shared)
        for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            cameras = orbit(plan.azimuth[places], plan.elevation[places]).to(given.device)
            conditions = model.conditions(cameras[None], is_condition, clean, person[None])
            level = torch.full((1,), sigma, device=given.device)
            d_u = denoise(model.network, process, conditions.null(), x, level)
            d_c = denoise(model.network, process, conditions, x, level)
            x = x + (following - sigma) * (x - (d_u + sampler.scale * (d_c - d_u))) / sigma
        made = conditions.with_given(x)[0, len(call.given) :]
        latents.update(zip(call.sampled, made, strict=True))
    pictures = [model.decode(latents[place][None, None])[0][0, 0] for place in plan.wanted]
    return torch.stack(pictures)


def main() -> None:
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    sampler = open_sampler(config.model, SamplerConfig(config.steps, precision=config.precision), config.device)
    model = sampler.model
    cells = model.about.resolution // model.vae.factor
    like = torch.zeros(1, model.latent_channels, cells, cells, device=model.device)
    given = gaussian(0, "photo", [0], like)[0] / 2
    person = torch.nn.functional.normalize(torch.randn(512, generator=torch.Generator().manual_seed(0)), dim=0)
    person, plan = person.to(given.device), plan_views(ring(config.views), np.zeros(config.views))
    ratios, seconds = [], []
    with torch.inference_mode():
        for _ in range(config.rounds):
            begun = time.perf_counter()
            turn = sampler.sample(plan, {0: given}, person)
            between = time.perf_counter()
            pictures = plain(sampler, given, person, config.views)
            if config.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(between - begun)
            ratios.append((time.perf_counter() - between) / (between - begun))
    differ = (turn.rgb[1:8] - pictures.cpu()[1:8]).abs().mean()
    own = sorted(seconds)[len(seconds) // 2] / config.views
    what = f"{config.model}, {config.views} views, {config.steps} steps, {resolve_precision(config.precision, config.device)}"
    found = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    Console(width=120).print(
        f"{what}: {own:.3f} s per view; plain loop / ours: {found}; anchors differ by {differ:.5f} on average"
    )


if __name__ == "__main__":
    main()
