"""Builds the generator of a configuration, with the weights of a checkpoint or with random ones."""

import torch
from torch import Tensor

from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.layers import FIR
from datagen.sources.panohead.spherehead import SphereHeadGenerator
from manifests.errors import UserError


def build(config: GeneratorConfig, state: dict[str, Tensor]) -> Generator:
    """The generator of a config with the weights of a state dict, every key and shape checked.

    Raises:
        ValueError: a key is missing, unknown or of another shape, or the resampling filter is another.
    """
    generator = _empty(config)
    expected = {key: tuple(value.shape) for key, value in generator.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    for key in sorted(expected.keys() | given.keys()):
        if expected.get(key) != given.get(key):
            raise UserError(
                f"weights {key}: the checkpoint has {given.get(key, 'none')}, its configuration needs "
                f"{expected.get(key, 'none')}"
            )
        if key.endswith("resample_filter") and not torch.allclose(state[key].float(), FIR, atol=1e-6):
            raise UserError(f"weights {key}: the filter is not [1 3 3 1], which alone is built here")
    generator.load_state_dict(state, assign=True)
    return generator.eval().requires_grad_(False)


def untrained(config: GeneratorConfig, seed: int) -> Generator:
    """A generator as StyleGAN2 initialises it, for tests and measurements."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in _empty(config).state_dict().items():
        if key.endswith("resample_filter"):
            state[key] = FIR.clone()
        elif key.endswith(("bias", "w_avg", "noise_strength")):
            state[key] = torch.full(value.shape, 1.0 if key.endswith("affine.bias") else 0.0)
        else:
            state[key] = torch.randn(value.shape, generator=random)
            # Layers with a small learning rate hold correspondingly large weights.
            state[key] *= 100 if key.startswith("backbone.mapping.fc") else 1
    return build(config, state)


def _empty(config: GeneratorConfig) -> Generator:
    """The modules and shapes of a config, without memory behind them."""
    with torch.device("meta"):
        return (SphereHeadGenerator if config.family == "spherehead" else Generator)(config)
