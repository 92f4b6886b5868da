"""Noise processes: EDM with v-prediction and DDPM with epsilon-prediction, both as x = z + sigma n.

Networks are wrapped as D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022, equation 7), so that one set of
samplers and one guidance rule serve every process. A variance-preserving state x_t of DDPM is x / sqrt(1 + sigma^2) here, with
sigma^2 = (1 - alpha_bar) / alpha_bar.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from manifests.errors import UserError
from train.diffusion.config import NoiseLevels


class Scalings(NamedTuple):
    """Preconditioning of a network at some noise levels."""

    c_skip: Float[Tensor, "*n"]
    c_out: Float[Tensor, "*n"]
    c_in: Float[Tensor, "*n"]
    c_noise: Float[Tensor, "*n"]


@runtime_checkable
class NoiseProcess(Protocol):
    """How data is noised, what a network predicts of it, and at which noise levels it is sampled.

    The loss is the mean square of the difference to `target`, without a weight: all noise levels count the same.
    """

    def sample_sigma(self, normal: Float[Tensor, " b"], targets: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Noise levels of training scenes with some numbers of target views, from standard normal draws."""
        ...

    def scalings(self, sigma: Float[Tensor, "*n"]) -> Scalings:
        """Preconditioning at some noise levels."""
        ...

    def target(
        self, clean: Float[Tensor, " b *c"], noise: Float[Tensor, " b *c"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, " b *c"]:
        """The output that the network is trained to give for clean + sigma noise."""
        ...

    def sigmas(self, steps: int) -> Float64[Tensor, " n"]:
        """Falling noise levels of a sampler with some number of steps, followed by the level at which it ends."""
        ...


def append_dims(values: Float[Tensor, " b"], tensor: Float[Tensor, " b *c"]) -> Float[Tensor, " b *_"]:
    """One number per scene, with axes of length one appended until it multiplies tensors of scenes."""
    return values.reshape(-1, *(1,) * (tensor.ndim - 1))


@dataclass(frozen=True)
class EDM:
    """EDM's process with v-prediction at unit data variance.

    Sources: Karras et al. 2022; SpinMeRound, section 3.3 (whose printed c_skip lacks an exponent) and its released code.
    """

    noise: NoiseLevels = field(default_factory=NoiseLevels)
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0

    def sample_sigma(self, normal: Float[Tensor, " b"], targets: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Log-normal levels; the mean rises with the number of views (see NoiseLevels)."""
        noise = self.noise
        views = torch.full_like(targets, float(noise.shift_views)) if noise.shift_views else targets
        rise = {"sqrtN": 0.5, "N": 1.0, "none": 0.0}[noise.shift] * views.log()
        return (noise.mean + rise + noise.std * normal).exp()

    def scalings(self, sigma: Float[Tensor, "*n"]) -> Scalings:
        """v-prediction: c_skip = 1 / (sigma^2 + 1), c_out = -sigma / sqrt(sigma^2 + 1); c_noise = ln(sigma) / 4."""
        total = sigma**2 + 1
        return Scalings(1 / total, -sigma / total.sqrt(), total.rsqrt(), sigma.log() / 4)

    def target(
        self, clean: Float[Tensor, " b *c"], noise: Float[Tensor, " b *c"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, " b *c"]:
        """v = (noise - sigma clean) / sqrt(1 + sigma^2).

        EDM's loss, (1 + sigma^2) / sigma^2 |D - clean|^2, equals the unweighted square of the difference between the
        network's output and v, because the weight cancels c_out^2.
        """
        s = append_dims(sigma, clean)
        return (noise - s * clean) * (s**2 + 1).rsqrt()

    def sigmas(self, steps: int) -> Float64[Tensor, " n"]:
        """Levels evenly spaced in sigma^(1/rho), followed by 0 (EDM, equation 5)."""
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        levels = (high + ramp * (low - high)) ** self.rho
        return torch.cat([levels, levels.new_zeros(1)])


@dataclass(frozen=True)
class DDPM:
    """Stable Diffusion's process with epsilon-prediction: `timesteps` levels of a scaled-linear schedule.

    Sources: Ho et al. 2020; Song et al. 2021 (DDIM); the schedule of Stable Diffusion 1.5, which DiffPortrait3D keeps.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    timesteps: int = 1000

    @cached_property
    def table(self) -> Float64[Tensor, " t"]:
        """The noise level of each timestep."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        return ((1 - alphas) / alphas).sqrt()

    def sample_sigma(self, normal: Float[Tensor, " b"], targets: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Levels of timesteps that are uniform: the normal distribution function makes normal draws uniform."""
        uniform = torch.special.ndtr(normal.double()).cpu()
        timestep = (uniform * self.timesteps).long().clamp(max=self.timesteps - 1)
        return self.table[timestep].to(normal)

    def timestep(self, sigma: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The timestep whose level is nearest on a logarithmic scale."""
        away = sigma.double().log()[..., None] - self.table.log().to(sigma.device)
        return away.abs().argmin(-1).to(sigma)

    def scalings(self, sigma: Float[Tensor, "*n"]) -> Scalings:
        """Epsilon-prediction: c_skip = 1, c_out = -sigma; c_noise is the timestep."""
        return Scalings(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), self.timestep(sigma))

    def target(
        self, clean: Float[Tensor, " b *c"], noise: Float[Tensor, " b *c"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, " b *c"]:
        """The noise itself."""
        return noise

    def sigmas(self, steps: int) -> Float64[Tensor, " n"]:
        """Levels of the timesteps 1, 1 + s, 1 + 2s, ... in falling order, and the level of timestep 0, at which DDIM ends.

        The stride s is timesteps // steps, so that a number of steps that does not divide the timesteps gives more of them
        (source: make_ddim_timesteps of latent-diffusion).

        Raises:
            UserError: `steps` is not between 1 and the number of timesteps, or its last timestep lies past the table.
        """
        self._check(steps)
        times = torch.arange(0, self.timesteps, self.timesteps // steps) + 1
        if times[-1] >= self.timesteps:
            raise UserError(
                f"--steps is {steps}; its first timestep is past the {self.timesteps} of this schedule, give 50"
            )
        return torch.cat([self.table[times.flip(0)], self.table[:1]])

    def legacy_sigmas(self, steps: int) -> Float64[Tensor, " n"]:
        """Levels at the timesteps numpy.linspace(timesteps - 1, 0, steps, endpoint=False), truncated, followed by 0.

        numpy's own rounding decides which of two neighbouring levels is used (source: LegacyDDPMDiscretization of Stability
        AI's generative-models).

        Raises:
            UserError: `steps` is not between 1 and the number of timesteps.
        """
        self._check(steps)
        times = np.linspace(self.timesteps - 1, 0, steps, endpoint=False).astype(np.int64)
        levels = self.table[torch.from_numpy(times)]
        return torch.cat([levels, levels.new_zeros(1)])

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= self.timesteps:
            raise UserError(
                f"--steps is {steps}; this schedule has {self.timesteps} noise levels, give 1 to {self.timesteps}"
            )
