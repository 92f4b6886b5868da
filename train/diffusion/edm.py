"""The noise process: EDM's scalings for v-prediction, the law of noise levels in training, and the levels of sampling.

x = z + sigma n, and D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) with sigma_data = 1. Sources: Karras et al. 2022 (EDM);
SpinMeRound, section 3.3 (whose c_skip lost its exponent in print) and its released code.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from manifests.errors import UserError
from train.diffusion.config import NoiseLevels

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma): the clean latents it believes in, for noisy ones and their level."""


class Scalings(NamedTuple):
    """What is wrapped around the network at some noise levels."""

    c_skip: Float[Tensor, "*n"]
    c_out: Float[Tensor, "*n"]
    c_in: Float[Tensor, "*n"]
    c_noise: Float[Tensor, "*n"]


def scalings(sigma: Float[Tensor, "*n"]) -> Scalings:
    """v-prediction at unit data variance, and ln(sigma) / 4 as what the network is told."""
    total = sigma**2 + 1
    return Scalings(1 / total, -sigma / total.sqrt(), total.rsqrt(), sigma.log() / 4)


def v_target(
    clean: Float[Tensor, " b *c"], noise: Float[Tensor, " b *c"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, " b *c"]:
    """What the network should say of x = clean + sigma noise: v = (noise - sigma clean) / sqrt(1 + sigma^2).

    EDM's loss, (1 + sigma^2) / sigma^2 |D - clean|^2, is the plain square of the difference to it, for the weight
    cancels c_out^2.
    """
    s = like(sigma, clean)
    return (noise - s * clean) * (s**2 + 1).rsqrt()


def like(values: Float[Tensor, " b"], tensor: Float[Tensor, " b *c"]) -> Float[Tensor, " b *_"]:
    """One number per scene, ready to be multiplied with tensors of scenes."""
    return values.reshape(-1, *(1,) * (tensor.ndim - 1))


def training_levels(law: NoiseLevels, normal: Float[Tensor, " b"], targets: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Noise levels in training of scenes with so many targets, from standard normal draws."""
    views = torch.full_like(targets, float(law.shift_views)) if law.shift_views else targets
    rise = {"sqrtN": 0.5, "N": 1.0, "none": 0.0}[law.shift] * views.log()
    return (law.mean + rise + law.std * normal).exp()


def edm_levels(steps: int, least: float = 0.002, most: float = 700.0, rho: float = 7.0) -> Float64[Tensor, " n"]:
    """Falling noise levels of a sampler, evenly spaced in sigma^(1/rho), with a last 0 (EDM, equation 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def ddpm_levels(steps: int, trained: int = 1000) -> Float64[Tensor, " n"]:
    """Noise levels of Stable Diffusion's schedule at `steps` of its `trained` times, descending, followed by 0.

    The times are `numpy.linspace(trained - 1, 0, steps, endpoint=False)`, truncated: numpy's own rounding decides which of
    two neighbouring levels is used (source: LegacyDDPMDiscretization of Stability AI's generative-models).

    Raises:
        UserError: `steps` is not between 1 and `trained`.
    """
    if not 1 <= steps <= trained:
        raise UserError(f"--steps is {steps}; this schedule has {trained} noise levels, give 1 to {trained}")
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), trained, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    times = np.linspace(trained - 1, 0, steps, endpoint=False).astype(np.int64)
    levels = ((1 - kept) / kept).sqrt()[torch.from_numpy(times)]
    return torch.cat([levels, levels.new_zeros(1)])


def euler(denoise: Denoiser, x: Float[Tensor, " b *c"], levels: Float64[Tensor, " n"]) -> Float[Tensor, " b *c"]:
    """Follow the probability flow by Euler's method, one evaluation a step (the released sampler)."""
    for sigma, following in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        slope = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        x = x + (following - sigma) * slope
    return x


def heun(denoise: Denoiser, x: Float[Tensor, " b *c"], levels: Float64[Tensor, " n"]) -> Float[Tensor, " b *c"]:
    """The same by Heun's method (EDM, algorithm 1): two evaluations a step, one in the last."""
    for sigma, following in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        slope = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        guess = x + (following - sigma) * slope
        if following > 0:
            after = (guess - denoise(guess, x.new_full((len(x),), following))) / following
            guess = x + (following - sigma) * (slope + after) / 2
        x = guess
    return x
