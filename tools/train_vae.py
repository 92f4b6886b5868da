"""Trains the embedded autoencoder on views of procedural heads: python -m tools.train_vae DATASET.

It encodes a picture of 64 px as 16 x 16 patches of 4 x 4 pixels, colours and normals alike. It is initialised as the best
linear code of patches (principal components), and learns the remainder. Stable Diffusion's design, with strided convolutions
and nearest-neighbour upsampling, left faces that cannot be recognised at this size (docs/results.md). The loss is the absolute
difference of the picture and of its reductions to 1/2, 1/4 and 1/8, which keeps colours, plus a small Kullback-Leibler
divergence, which keeps the latents smooth.
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from rich.progress import track
from torch import Tensor
from tyro.conf import Positional

from train.batch import Batch
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import SingleView
from train.networks.config import WEIGHTS
from train.networks.model import autocast
from weights.embedded import HEADS64
from weights.files import save_tensors


@dataclass(frozen=True)
class TrainVaeConfig:
    """Train the embedded autoencoder; about five minutes on one core."""

    dataset: Positional[str]
    """Views of procedural heads with normals."""
    out: Path = HEADS64 / "vae"
    channels: int = 12
    """Latent channels for the 48 numbers of a patch; with the 4 of Stable Diffusion, faces of 64 px cannot be recognised."""
    steps: int = 500
    batch: int = 24
    """Views of a step; each is two pictures, its colours and its normals."""
    resolution: int = 64
    lr: float = 5e-4
    kl: float = 1e-4
    seed: int = 0
    threads: int = 1


PATCH = 4
"""Side of a patch in pixels; a patch becomes one latent cell."""
LARGE = 10.0
"""Constant in each group of the last group norm, so that the norm hardly depends on the picture."""


def build(channels: int, images: Float[Tensor, "n 3 h w"], seed: int) -> Any:
    """A new autoencoder, initialised with the principal components of the patches of some pictures in [-1, 1]."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"block_out_channels": (128,), "norm_num_groups": 8, "sample_size": 64 // PATCH}
        sizes |= {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
        sizes |= {"in_channels": 3 * PATCH**2, "out_channels": 3 * PATCH**2, "mid_block_add_attention": False}
        model: Any = AutoencoderKL(latent_channels=channels, **sizes)
    patches = F.pixel_unshuffle(images, PATCH).movedim(1, -1).flatten(0, -2)
    mean = patches.mean(0)
    variance, basis = torch.linalg.eigh(torch.cov(patches.T))
    # Halfway to equal variances: large shapes and colours keep the largest latents, and are learned first.
    variance, basis = variance[-channels:], basis[:, -channels:] * variance[-channels:] ** 0.25
    inverse = basis.T / variance[:, None] ** 0.5
    with torch.no_grad():
        begin_linear(model.encoder, inverse, -inverse @ mean)
        begin_linear(model.decoder, basis, mean)
        model.encoder.conv_out.bias[channels:] = -6.0
        for convolution in (model.quant_conv, model.post_quant_conv):
            torch.nn.init.dirac_(convolution.weight)
            convolution.bias.zero_()
    return model


def begin_linear(part: Any, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"]) -> None:
    """Initialise an encoder or decoder so that it computes weight x + bias at every cell.

    Its residual blocks add zero. Every number passes the last activation twice, with both signs, because
    silu(x) - silu(-x) = x; a large constant in its group makes the group norm before it nearly a fixed factor.
    """
    first, norm, last = part.conv_in, part.conv_norm_out, part.conv_out
    for block in (m for m in part.modules() if hasattr(m, "conv_shortcut")):
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    for convolution in (first, last):
        convolution.weight.zero_()
        convolution.bias.zero_()
    size = first.out_channels // norm.num_groups
    size_of_one = (2 * LARGE**2 / size) ** 0.5
    for number, (row, offset) in enumerate(zip(weight, bias, strict=True)):
        plus = number % norm.num_groups * size + number // norm.num_groups * 2
        for at, sign in ((plus, 1), (plus + 1, -1)):
            first.weight[at, :, 1, 1], first.bias[at] = sign * row, sign * offset
            last.weight[number, at, 1, 1] = sign * size_of_one
    first.bias[size - 2 :: size], first.bias[size - 1 :: size] = LARGE, -LARGE


def main() -> None:
    config = tyro.cli(TrainVaeConfig)
    torch.set_num_threads(config.threads)
    # The steps take a part of one epoch, so no view comes twice.
    loader = open_loader(
        LoaderConfig(
            config.dataset, SingleView(), batch=config.batch, resolution=config.resolution, seed=config.seed, workers=1
        )
    )
    batches = list(islice(loader, 8))
    model = build(config.channels, torch.cat([pictures_of(batch) for batch in batches]), config.seed)
    noise = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, config.steps, pct_start=0.05)
    for step, batch in track(zip(range(config.steps), loader, strict=False), "autoencoder", config.steps):
        images = pictures_of(batch)
        with autocast("auto", "cpu"):
            posterior = model.encode(F.pixel_unshuffle(images, PATCH)).latent_dist
            decoded = F.pixel_shuffle(model.decode(posterior.sample(noise)).sample, PATCH)
        loss = difference(decoded.float(), images) + config.kl * divergence(posterior.mean, posterior.logvar)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {config.steps}, loss {loss:.4f}", flush=True)
    model.eval()
    figures = measure(model, list(islice(loader, 8)))
    model.register_to_config(scaling_factor=round(1 / figures.pop("std"), 4))
    model.save_config(config.out)
    save_tensors(model.state_dict(), config.out / WEIGHTS)
    print(json.dumps(figures))


def pictures_of(batch: Batch) -> Float[Tensor, "n 3 h w"]:
    """The colours of all views of a batch, then their normals, in [-1, 1]."""
    assert isinstance(batch.rgb, Tensor)
    assert isinstance(batch.normal, Tensor)
    return torch.cat([batch.rgb[:, 0], batch.normal[:, 0]])


def difference(decoded: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """The mean absolute difference, summed over the pictures and their reductions to 1/2, 1/4 and 1/8."""
    missed = decoded - images
    return torch.stack([F.avg_pool2d(missed, size).abs().mean() for size in (1, 2, 4, 8)]).sum()


def divergence(mean: Float[Tensor, "n c h w"], logvar: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence from the unit normal, per latent number."""
    return (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean() / 2


@torch.inference_mode()
def measure(model: Any, batches: list[Batch]) -> dict[str, float]:
    """PSNR (dB) of the reconstruction of views that were not trained on, and the standard deviation of their latents."""
    found: dict[str, float] = {}
    codes = []
    for name in ("rgb", "normal"):
        images = torch.cat([getattr(batch, name)[:, 0] for batch in batches])
        code = model.encode(F.pixel_unshuffle(images, PATCH)).latent_dist.mean
        codes.append(code)
        error = (F.pixel_shuffle(model.decode(code).sample, PATCH).clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
        found[f"psnr_{name}"] = round(float((10 * torch.log10(4 / error)).mean()), 2)
    return {**found, "std": float(torch.cat(codes).std())}


if __name__ == "__main__":
    main()
