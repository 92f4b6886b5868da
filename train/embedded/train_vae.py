"""Trains the embedded autoencoder on views of procedural heads: python -m train.embedded.train_vae DATASET.

It halves a picture of 64 px twice, to 16 x 16 cells, and encodes colours and normals alike, as Stable Diffusion's does at
512 px. Loss: absolute difference, of the picture and of its halves down to 8 px, without which faces keep their edges and lose
their colour; and a little of the Kullback-Leibler divergence that keeps codes smooth.
"""

import json
from dataclasses import dataclass
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
from train.data.loader import LoaderConfig, open_loader
from train.data.sampling import SingleView
from train.embedded.folder import HEADS64


@dataclass(frozen=True)
class TrainVaeConfig:
    """Train the embedded autoencoder; about half an hour on one core."""

    dataset: Positional[str]
    """Views of procedural heads with normals."""
    out: Path = HEADS64 / "vae"
    channels: int = 8
    """Of the code: with Stable Diffusion's 4, a face of 64 px is blurred beyond recognition."""
    steps: int = 2400
    batch: int = 24
    """Views; each counts twice, for its colours and its normals."""
    resolution: int = 64
    lr: float = 2e-3
    kl: float = 1e-4
    seed: int = 0
    threads: int = 1


def build(channels: int, seed: int) -> Any:
    """A new autoencoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"block_out_channels": (32, 48, 64), "norm_num_groups": 8, "sample_size": 64}
        sizes |= {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        return AutoencoderKL(latent_channels=channels, mid_block_add_attention=False, **sizes)


def main() -> None:
    config = tyro.cli(TrainVaeConfig)
    torch.set_num_threads(config.threads)
    # Each view of an epoch once, and not all of them: there are more than are needed.
    loader = open_loader(
        LoaderConfig(
            config.dataset, SingleView(), batch=config.batch, resolution=config.resolution, seed=config.seed, workers=1
        )
    )
    model = build(config.channels, config.seed).to(memory_format=torch.channels_last)
    noise = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, config.steps, pct_start=0.05)
    for step, batch in track(zip(range(config.steps), loader, strict=False), "autoencoder", config.steps):
        assert isinstance(batch.rgb, Tensor)
        assert isinstance(batch.normal, Tensor)
        images = torch.cat([batch.rgb[:, 0], batch.normal[:, 0]]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(images).latent_dist
            seen = model.decode(posterior.sample(noise)).sample
        loss = difference(seen.float(), images) + config.kl * divergence(posterior.mean, posterior.logvar)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {config.steps}, loss {loss:.4f}", flush=True)
    model.eval()
    figures = measure(model, [next(iter(loader)) for _ in range(8)])
    model.register_to_config(scaling_factor=round(1 / figures.pop("std"), 4))
    model.save_pretrained(config.out)
    print(json.dumps(figures))


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
        code = model.encode(images).latent_dist
        codes.append(code.mean)
        error = (model.decode(code.mean).sample.clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
        found[f"psnr_{name}"] = round(float((10 * torch.log10(4 / error)).mean()), 2)
    return {**found, "std": float(torch.cat(codes).std())}


if __name__ == "__main__":
    main()
