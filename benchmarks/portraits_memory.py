"""Counts the memory that a DiffPortrait360 of released size takes: python benchmarks/portraits_memory.py.

Nothing is computed: tensors are fake, and what is alive at once is counted. What a GPU needs besides, such as workspaces of
convolutions and fragmentation, is not. Guidance evaluates its branches one after the other, and windows follow each other, so
the number of views changes nothing but the latents.
"""

from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from train.families.diffportrait.config import DiffPortraitConfig
from train.families.diffportrait.model import DiffPortraitConditions, DiffPortraitNetwork
from train.weights.names import SD15_VAE_CONFIG

GIB = 2**30


@dataclass(frozen=True)
class Config:
    """Count the memory of sampling with a DiffPortrait360."""

    resolution: int = 512
    window: int = 8
    references: int = 2
    views: int = 32


def main() -> None:
    config = tyro.cli(Config)
    with FakeTensorMode():
        network, vae = DiffPortraitNetwork(DiffPortraitConfig(), 4, 8), build_vae()
        parts = {name: weights_of(part) for name, part in network.named_children()}
        largest = max(weights_of(layer, recurse=False) for layer in network.modules())
        computing = [activations(network, config, cached) for cached in (True, False)]
        decoding = decoder_activations(vae, config)
    weights, picture = sum(parts.values()), 3 * 4 * config.resolution**2 / GIB
    # Autocast keeps copies of the weights in bf16 unless they are elsewhere, and then makes one of a layer at a time.
    options = {"all on the GPU": (weights, computing[0]), "--offload": (largest, computing[1])}
    table = Table("part", "GiB in fp32", title="weights of DiffPortrait360")
    for name, size in {**parts, "vae": weights_of(vae)}.items():
        table.add_row(name, f"{size:.2f}")
    peaks = Table("option", "weights", "network", "decoder", "pictures", "peak, GiB")
    peaks.title = (
        f"{config.views} views of {config.resolution} px in windows of {config.window}, {config.references} references"
    )
    for name, (resident, alive) in options.items():
        pictures, decoder = picture * 2 * config.views, weights_of(vae) + decoding
        peak = resident + weights_of(vae) + pictures + max(alive, decoding)
        peaks.add_row(name, *(f"{x:.2f}" for x in (resident, alive, decoder, pictures, peak)))
    console = Console(width=110)
    console.print(table, peaks)


def build_vae() -> nn.Module:
    """Stable Diffusion's autoencoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae: Any = AutoencoderKL.from_config(dict(SD15_VAE_CONFIG))
    return vae


def weights_of(module: nn.Module, recurse: bool = True) -> float:
    """The size of the weights of a module in fp32, in GiB."""
    return sum(weight.numel() for weight in module.parameters(recurse)) * 4 / GIB


def activations(network: nn.Module, config: Config, cached: bool) -> float:
    """The memory of activations, and of cached weights, while the network sees a window, in GiB."""
    cells, views = config.resolution // 8, config.references + config.window
    x = torch.randn(1, views, 4, cells, cells)
    control = torch.randn(1, config.window, 3, config.resolution, config.resolution)
    targets = torch.ones(1, views, dtype=torch.bool)
    conditions = DiffPortraitConditions(x[:, : config.references], control, torch.zeros(1, 77, 768), targets)
    return peak_of(network, lambda: network(x, torch.full((1,), 500.0), conditions), cached)


def decoder_activations(vae: Any, config: Config) -> float:
    """The memory of activations while a view is decoded, in GiB."""
    latents = torch.randn(1, 4, config.resolution // 8, config.resolution // 8)
    return peak_of(vae, lambda: vae.decode(latents))


def peak_of(module: nn.Module, compute: Any, cached: bool = True) -> float:
    """The most memory that is alive at once besides the weights of a module, in GiB, with autocast to bf16."""
    module.requires_grad_(True)  # which the tracker expects of weights; no gradient is computed
    tracker = MemTracker()
    tracker.track_external(module)
    with tracker, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
        compute()
    peak: Any = tracker.get_tracker_snapshot("peak")
    return sum(sizes["Total"] for sizes in peak.values()) / GIB - weights_of(module)


if __name__ == "__main__":
    main()
