"""Builds the generator of a configuration with the weights of a checkpoint."""

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
    generator = empty_generator(config)
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


def empty_generator(config: GeneratorConfig) -> Generator:
    """The modules and shapes of a config, without memory behind them."""
    with torch.device("meta"):
        return (SphereHeadGenerator if config.family == "spherehead" else Generator)(config)
