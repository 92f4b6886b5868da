"""Denoising and sampling: a network under a noise process, classifier-free guidance, and the samplers."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from train.diffusion.conditions import Conditions
from train.diffusion.process import NoiseProcess, append_dims

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
