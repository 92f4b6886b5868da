"""Views at the released size with random weights: seconds per view, and what a few-step path would cost."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from train_step import flops

from gpu_parts.common import Budget, Table, percent, seconds
from gpu_parts.training import TOY_SHAPE
from infer.config import SamplerConfig
from infer.views import ViewSampler, plan_views, ring
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import About
from train.networks.model import Model, Vae
from train.networks.unet import compile_blocks
from train.run.log import PEAK
from train.weights.names import SD15_VAE_CONFIG

VIEWS = 8
"""One call: the given view and seven that are made."""


def model_of(budget: Budget) -> Model:
    """A model of the released size, or a toy, with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    settings = dict(SD15_VAE_CONFIG)
    if budget.toy:
        settings |= {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    shape = TOY_SHAPE if budget.toy else SpinMeRoundConfig()
    vae: Any = AutoencoderKL(**settings).to(budget.device).eval()
    model = shape.build(Vae(vae, "", "", 0.18215, 8, 4), About(resolution=64 if budget.toy else 512))
    model.network.eval()
    return model.to(budget.device)


def views(budget: Budget) -> Iterator[Table]:
    """Seconds per 512 px view, with 50 steps and guidance, and with 4 steps without."""
    torch.manual_seed(0)
    device, model = budget.device, model_of(budget)
    resolution = 64 if budget.toy else 512
    cells = resolution // 8
    given = {0: torch.randn(8, cells, cells, device=device)}
    person = torch.nn.functional.normalize(torch.randn(512, device=device), dim=0)
    plan = plan_views(ring(VIEWS), np.zeros(VIEWS))
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((value for part, value in PEAK.items() if part in name), float("nan"))
    work = flops(TOY_SHAPE if budget.toy else SpinMeRoundConfig(), cells, 1 if budget.toy else 77)
    table = Table(
        f"Seconds per made view of {resolution} px (7 made of 8 in one call)",
        ("steps", "guidance", "switched on", "sampling", "of peak", "decoding (KL)", "together"),
    )
    decoding = Table("Decoding one view and its normals", ("decoder", "ms"))
    latents = torch.randn(2, 4, cells, cells, device=device)
    kl = seconds(lambda: decode(model.vae.model, latents), device, 3, warmup=1)
    yield decoding.add("AutoencoderKL of Stable Diffusion, fp32", 1000 * kl)
    with torch.autocast(device, torch.bfloat16):
        half = seconds(lambda: decode(model.vae.model, latents), device, 3, warmup=1)
    yield decoding.add("the same, bf16", 1000 * half)
    autoencoder = model.vae.model.to(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        last = seconds(lambda: decode(autoencoder, latents), device, 3, warmup=1)
    yield decoding.add("the same, bf16 and channels_last", 1000 * last)
    small = seconds(lambda: decode(tiny_autoencoder(device), latents), device, 3, warmup=1)
    yield decoding.add("AutoencoderTiny, fp32", 1000 * small)
    for steps, scale, options in (
        *((50, 3.0, ""), (50, 3.0, "tuned"), (4, 1.0, "tuned")),
        *((50, 3.0, "compile, tuned"), (4, 1.0, "compile, tuned")),
    ):
        # Compiling takes a minute; a call of 50 steps a few seconds.
        if budget.left() < (0 if budget.toy else 90 if "compile" in options else 12):
            continue
        torch.backends.cudnn.benchmark = "tuned" in options
        if "compile" in options and device == "cuda":
            compile_blocks(model.network)
        steps = min(steps, 2) if budget.toy else steps
        sampler = ViewSampler(model, SamplerConfig(steps, scale, precision="bf16"))
        short = ViewSampler(model, SamplerConfig(1, scale, precision="bf16"))
        sample(short, plan, given, person)
        made = VIEWS - 1
        taken = seconds(lambda sampler=sampler: sample(sampler, plan, given, person), device) / made
        share = work * steps * (2 if scale > 1 else 1) / (taken * made) / peak
        yield table.add(steps, scale, options or "nothing", taken, percent(share), kl, taken + kl)


@torch.inference_mode()
def sample(sampler: ViewSampler, plan: Any, given: Any, person: Any) -> None:
    sampler._call(plan, plan.calls[0], given, person, lambda: None, {}, {})


@torch.inference_mode()
def decode(autoencoder: Any, latents: torch.Tensor) -> None:
    for latent in latents:
        autoencoder.decode(latent[None])


def tiny_autoencoder(device: str) -> Any:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return AutoencoderTiny().to(device).eval()
