"""The official implementation's small generators, and what it made of them.

tests/golden/panohead holds them reduced: of large results every n-th number, and no noise that their networks do not add.
The whole files are used too where they lie beside the clone.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from datagen.sources.panohead.build import build
from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.official import ISO_LEVEL, frontal_label, latent

REDUCED = Path(__file__).parent / "golden" / "panohead"
WHOLE = Path(__file__).parents[2] / "shared" / "golden" / "panohead"
FOLDERS = [folder for folder in (REDUCED, WHOLE) if folder.is_dir()]
OFFICIAL_PICKLES = sorted(WHOLE.glob("tiny*.pkl"))


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def generator(folder: Path, family: str = "panohead") -> Generator:
    """The small generator of a family with its golden weights."""
    name = {"panohead": "tiny", "spherehead": "spherehead_tiny"}[family]
    kwargs, tensors = read(folder, name)["init_kwargs"], load_file(folder / f"{name}.safetensors")
    state = {key.removeprefix("sd."): value for key, value in tensors.items() if not key.startswith("case.")}
    for block, side in ((0, 64), (1, 128)):
        for layer in (0, 1):  # superresolution_noise_mode is none
            state.setdefault(f"superresolution.block{block}.conv{layer}.noise_const", torch.zeros(side, side))
    return build(GeneratorConfig.from_official(kwargs, kwargs["rendering_kwargs"], 16, family), state)


def close(ours: torch.Tensor, official: torch.Tensor, tolerance: float) -> None:
    """Compare a result with an official one, which may hold every n-th of its numbers."""
    step = -(-ours.numel() // official.numel())
    torch.testing.assert_close(ours.flatten()[::step], official.flatten(), atol=tolerance, rtol=0)


def styles(network: Generator, seed: int = 8) -> torch.Tensor:
    """The styles of a seed."""
    return network.mapping(latent(seed, network.config.z_dim), frontal_label(), 0.7)


def gentle(seed: int = 8, strength: float = 0.3) -> Generator:
    """The golden generator, its styles at a part of their strength and the head of a seed solid.

    Its weights are random, so that styles act far more strongly than those of a trained generator, where a search ends early,
    and its heads are nearly transparent. The density is moved until a fifth of the space is inside.
    """
    network = generator(REDUCED)
    for name, weight in network.named_parameters():
        if name.endswith("affine.weight"):
            weight *= strength
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) * 0.7 - 0.35
    sigma = network.identity(styles(network, seed)).renderer.sigma(points)
    network.decoder.last.bias[0] += ISO_LEVEL - sigma.quantile(0.8)
    return network
