"""Tensors drawn from their names, as the golden numbers were made with: weights that need not be stored."""

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def hashed(name: str, shape: tuple[int, ...], scale: float = 1.0, offset: float = 0.0) -> Tensor:
    """Uniform numbers in [-scale, scale) + offset."""
    v = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    v *= np.uint32(2654435761)
    v ^= v >> np.uint32(15)
    v *= np.uint32(0x2C1B3C6D)
    v ^= v >> np.uint32(12)
    v *= np.uint32(0x297A2D39)
    v ^= v >> np.uint32(15)
    values = (v.astype(np.float64) / 2**31 - 1) * scale + offset
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def hashed_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of a network by name: scales of norms about 1, biases about 0, matrices and kernels by their fan-in."""
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights[name] = hashed(name, shape, 0.1, 1.0 if name.endswith("weight") else 0.0)
        else:
            weights[name] = hashed(name, shape, math.sqrt(3 / math.prod(shape[1:])))
    return weights
