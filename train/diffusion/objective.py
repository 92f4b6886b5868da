"""The loss of a batch: its noise, its noise levels, its dropped conditions, and the error of the network's prediction.

Every draw is a function of (seed, purpose, place), where the place counts all samples that a run has seen: no rank, worker,
micro-batch or restart changes it. Source: SpinMeRound, sections 3.2 and 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manifests.draws import generator
from train.diffusion.conditions import Conditions
from train.diffusion.config import Objective
from train.diffusion.process import NoiseProcess, append_dims
from train.diffusion.sampling import Network, predict


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
