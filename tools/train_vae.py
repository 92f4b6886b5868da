"""Trains the embedded autoencoder on views of procedural heads: python -m tools.train_vae DATASET.

It reads a picture of 64 px as 16 x 16 patches of 4 x 4 pixels and encodes colours and normals alike. It begins as the best
linear code of patches (principal components) and learns what a line cannot. Stable Diffusion's design, which halves a picture
and doubles it again by repeating cells, has to learn where in a cell a pixel is, and left faces nobody knows (docs/results.md).
Loss: absolute difference, of the picture and of its halves down to 8 px, which keeps colours; and a little of the
Kullback-Leibler divergence that keeps codes smooth.
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

from train.data.batch import Batch
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import SingleView
from train.diffusion.precision import autocast
from train.networks.config import WEIGHTS
from weights.embedded import HEADS64
from weights.tensors import save_tensors


@dataclass(frozen=True)
class TrainVaeConfig:
    """Train the embedded autoencoder; about five minutes on one core."""

    dataset: Positional[str]
    """Views of procedural heads with normals."""
    out: Path = HEADS64 / "vae"
    channels: int = 12
    """Of the code, for 48 numbers of a patch: with Stable Diffusion's 4, a face of 64 px is blurred beyond recognition."""
    steps: int = 500
    batch: int = 24
    """Views; each counts twice, for its colours and its normals."""
    resolution: int = 64
    lr: float = 5e-4
    kl: float = 1e-4
    seed: int = 0
    threads: int = 1


PATCH = 4
"""Pixels of a side that become one cell."""
LOUD = 10.0
"""What is added to every group that is normalised, so that its size hardly depends on the picture."""


def build(channels: int, images: Float[Tensor, "n 3 h w"], seed: int) -> Any:
    """A new autoencoder that codes pictures like these by their principal components."""
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
    # Halfway to equal variances: large shapes and colours stay the louder part of a code, and are learned first.
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
    """Set an encoder or decoder so that it computes weight x + bias at every place, which training then leaves.

    Its blocks add nothing at first. Every number goes through the last activation twice, with both signs, for
    silu(x) - silu(-x) = x; and beside a loud constant, which makes the group norm before it nearly a fixed factor.
    """
    first, norm, last = part.conv_in, part.conv_norm_out, part.conv_out
    for block in (m for m in part.modules() if hasattr(m, "conv_shortcut")):
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()
    for convolution in (first, last):
        convolution.weight.zero_()
        convolution.bias.zero_()
    size = first.out_channels // norm.num_groups
    size_of_one = (2 * LOUD**2 / size) ** 0.5
    for number, (row, offset) in enumerate(zip(weight, bias, strict=True)):
        plus = number % norm.num_groups * size + number // norm.num_groups * 2
        for at, sign in ((plus, 1), (plus + 1, -1)):
            first.weight[at, :, 1, 1], first.bias[at] = sign * row, sign * offset
            last.weight[number, at, 1, 1] = sign * size_of_one
    first.bias[size - 2 :: size], first.bias[size - 1 :: size] = LOUD, -LOUD


def main() -> None:
    config = tyro.cli(TrainVaeConfig)
    torch.set_num_threads(config.threads)
    # Each view of an epoch once, and not all of them: there are more than are needed.
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
            seen = F.pixel_shuffle(model.decode(posterior.sample(noise)).sample, PATCH)
        loss = difference(seen.float(), images) + config.kl * divergence(posterior.mean, posterior.logvar)
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
    """Colours, then normals."""
    assert isinstance(batch.rgb, Tensor)
    assert isinstance(batch.normal, Tensor)
    return torch.cat([batch.rgb[:, 0], batch.normal[:, 0]])


def difference(seen: Float[Tensor, "n c h w"], images: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """The absolute difference, summed over the pictures and their halves down to an eighth."""
    missed = seen - images
    return torch.stack([F.avg_pool2d(missed, size).abs().mean() for size in (1, 2, 4, 8)]).sum()


def divergence(mean: Float[Tensor, "n c h w"], logvar: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """From a unit normal, per number of a code."""
    return (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean() / 2


@torch.inference_mode()
def measure(model: Any, batches: list[Batch]) -> dict[str, float]:
    """How well views come back that this run has not seen, of the heads it saw others of; and the spread of their codes."""
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
