"""Noise processes, EDM with v-prediction and DDPM with epsilon-prediction, and what is computed under them: loss and samples.

Both are written as x = z + sigma n. Networks are wrapped as D(x; sigma) = c_skip x + c_out F(c_in x, c_noise) (Karras et al.
2022, equation 7), so that one loss, one guidance rule and one set of samplers serve every process. A variance-preserving state
x_t of DDPM is x / sqrt(1 + sigma^2) here, with sigma^2 = (1 - alpha_bar) / alpha_bar.

Every draw is a function of (seed, purpose, place), where the place counts all samples that a run has seen: no rank, worker,
micro-batch or restart changes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from manifests.draws import generator
from manifests.errors import UserError
from train.diffusion.conditions import Conditions
from train.diffusion.config import NoiseLevels, Objective


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

    @property
    def highest(self) -> float:
        """The highest noise level."""
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

    @property
    def highest(self) -> float:
        """The level at which sampling starts."""
        return self.sigma_max

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

    @property
    def highest(self) -> float:
        """The level of the last timestep."""
        return float(self.table[-1])

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


Network = Callable[[Tensor, Tensor, Conditions], Tensor]
"""F(c_in x, c_noise, conditions): the raw network."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x, sigma): the estimate of the clean latents from noisy ones and their noise level."""

Sampler = Callable[[Denoiser, Tensor, Tensor], Tensor]
"""Latents at the last of some falling noise levels, from a denoiser and latents at the first level."""


def predict(
    network: Network,
    process: NoiseProcess,
    conditions: Conditions,
    x: Float[Tensor, "b v c h w"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b v c h w"]:
    """The network's raw output F for noisy latents; given views enter clean."""
    c_in, c_noise = process.scalings(sigma)[2:]
    return network(conditions.with_given(x) * append_dims(c_in, x), c_noise, conditions)


@dataclass(frozen=True, eq=False)
class Draws:
    """The random draws of b scenes."""

    noise: Float[Tensor, "b v c h w"]
    level: Float[Tensor, " b"]
    """Standard normal numbers from which the noise process makes noise levels."""
    drop: Bool[Tensor, "b k"]
    """Conditions that are dropped, in the order of `Conditions.droppable`."""


def draw(
    objective: Objective, seed: int, places: Sequence[int], like: Float[Tensor, "b v c h w"], droppable: int
) -> Draws:
    """The draws of scenes at some places of a run, for latents of the shape of `like`."""
    numbers = [generator(seed, "level", place) for place in places]
    level = torch.tensor([rng.standard_normal() for rng in numbers])
    drop = torch.tensor([[rng.random() for _ in range(droppable)] for rng in numbers]) < objective.drop
    if objective.drop_mode == "joint":
        drop = drop[:, :1].expand_as(drop)
    return Draws(gaussian(seed, "noise", places, like), level.to(like.device), drop.to(like.device))


def gaussian(seed: int, purpose: str, places: Sequence[int], like: Float[Tensor, " b *c"]) -> Float[Tensor, " b *c"]:
    """Standard normal numbers, drawn on the device of `like` and place by place."""
    out = torch.empty_like(like, dtype=torch.float32)
    on_device = torch.Generator(like.device)
    for of_scene, place in zip(out, places, strict=True):
        on_device.manual_seed(int(generator(seed, purpose, place).integers(2**63)))
        of_scene.normal_(generator=on_device)
    return out


def losses(
    network: Network,
    process: NoiseProcess,
    conditions: Conditions,
    latents: Float[Tensor, "b v c h w"],
    noise: Float[Tensor, "b v c h w"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Mean square error of the network's prediction over the target views of each scene, at given noise levels."""
    x = conditions.with_given(latents + append_dims(sigma, latents) * noise)
    output = predict(network, process, conditions, x, sigma).float()
    error = (output - process.target(latents, noise, sigma)).square().mean((2, 3, 4))
    is_target = conditions.is_target.float()
    return (error * is_target).sum(1) / is_target.sum(1)


def denoise(
    network: Network,
    process: NoiseProcess,
    conditions: Conditions,
    x: Float[Tensor, "b v c h w"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b v c h w"]:
    """D(x; sigma); its values for given views have no meaning."""
    c_skip, c_out = process.scalings(sigma)[:2]
    output = predict(network, process, conditions, x, sigma)
    return append_dims(c_skip, x) * conditions.with_given(x) + append_dims(c_out, x) * output


def guided(network: Network, process: NoiseProcess, conditions: Conditions, scale: float) -> Denoiser:
    """Classifier-free guidance D_u + scale (D_c - D_u), both branches in one batch if possible; scale 1 evaluates D_c alone."""
    if scale == 1:
        return lambda x, sigma: denoise(network, process, conditions, x, sigma)
    null = conditions.null()
    both = null.cat(conditions) if conditions.batched_guidance else None

    def branches(x: Tensor, sigma: Tensor) -> Tensor:
        if both is not None:
            d_u, d_c = denoise(network, process, both, x.repeat(2, 1, 1, 1, 1), sigma.repeat(2)).chunk(2)
        else:
            d_u, d_c = (denoise(network, process, branch, x, sigma) for branch in (null, conditions))
        return d_u + scale * (d_c - d_u)

    return branches


def initial_latents(
    noise: Float[Tensor, "b v c h w"], sigma: float | Float64[Tensor, ""], shared: bool = False
) -> Float[Tensor, "b v c h w"]:
    """Latents at the first noise level over data of unit variance; `shared` takes the noise of the first view for all."""
    return (noise[:, :1].expand_as(noise) if shared else noise) * (1 + float(sigma) ** 2) ** 0.5


def proxy_noise(
    noise: Float[Tensor, "b v c h w"], proxies: Float[Tensor, "b v c h w"], process: NoiseProcess
) -> Float[Tensor, "b v c h w"]:
    """The initial noise of sampling that starts from coarse pictures: their latents at the highest noise level.

    At 1,000 scaled-linear steps this keeps 0.0683 of the latents; the sampler takes it for noise of its first, lower level.
    Source: DiffPortrait3D's and DiffPortrait360's released samplers.
    """
    sigma = process.highest
    return (proxies + sigma * noise) * (1 + sigma**2) ** -0.5


def euler(denoise: Denoiser, x: Float[Tensor, " b *c"], sigmas: Float64[Tensor, " n"]) -> Float[Tensor, " b *c"]:
    """Euler's method along the probability-flow ODE, one evaluation a step."""
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        slope = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        x = x + (following - sigma) * slope
    return x


def heun(denoise: Denoiser, x: Float[Tensor, " b *c"], sigmas: Float64[Tensor, " n"]) -> Float[Tensor, " b *c"]:
    """Heun's method (EDM, algorithm 1): two evaluations a step, one in the last."""
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        slope = (x - denoise(x, x.new_full((len(x),), sigma))) / sigma
        guess = x + (following - sigma) * slope
        if following > 0:
            after = (guess - denoise(guess, x.new_full((len(x),), following))) / following
            guess = x + (following - sigma) * (slope + after) / 2
        x = guess
    return x


def ddim(
    denoise: Denoiser,
    x: Float[Tensor, " b *c"],
    sigmas: Float64[Tensor, " n"],
    eta: float = 0.0,
    noise: Callable[[int], Float[Tensor, " b *c"]] | None = None,
) -> Float[Tensor, " b *c"]:
    """DDIM (Song et al. 2021, equations 12 and 16) in terms of noise levels; with eta 0 it is Euler's method.

    With eta > 0 each step from level t to level s replaces a part of the predicted noise by `noise(step)`, with a standard
    deviation of eta s sqrt(1 - s^2 / t^2); eta 1 is DDPM's ancestral sampler.
    """
    assert eta == 0 or noise is not None
    for step, (sigma, following) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        clean = denoise(x, x.new_full((len(x),), sigma))
        epsilon = (x - clean) / sigma
        added = eta * following * (1 - (following / sigma) ** 2) ** 0.5
        x = clean + (following**2 - added**2) ** 0.5 * epsilon
        if added and noise is not None:
            x = x + added * noise(step)
    return x


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "ddim": ddim}


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    conditions: Conditions,
    noise: Float[Tensor, "b v c h w"],
    sigmas: Float64[Tensor, " n"],
    sampler: Sampler = euler,
    shared_noise: bool = False,
) -> Float[Tensor, "b v c h w"]:
    """Clean latents of all views from standard normal noise; those of given views are returned as they are."""
    x = sampler(denoiser, initial_latents(noise, sigmas[0], shared_noise), sigmas)
    end = float(sigmas[-1])
    # A schedule that ends above zero leaves the state of that level, which is scaled to unit variance.
    return conditions.with_given(x if end == 0 else x * (1 + end**2) ** -0.5)
