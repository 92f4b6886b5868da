"""The loss of a batch: which noise, which level, what is dropped, and how far the network is from the truth.

Every draw is a function of (seed, purpose, place), where the place counts all samples that a run has seen: no rank, worker,
micro-batch or restart changes it. Source: SpinMeRound, sections 3.2 and 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from manifests.draws import generator
from train.diffusion.config import Objective
from train.diffusion.edm import like, training_levels, v_target
from train.diffusion.scene import Network, Nothing, Scene, given_in, predict, without


@dataclass(frozen=True, eq=False)
class Draws:
    """What chance decides of b scenes."""

    noise: Float[Tensor, "b v c h w"]
    level: Float[Tensor, " b"]
    """A standard normal number, of which the noise level is made."""
    drop_images: Bool[Tensor, " b"]
    drop_identity: Bool[Tensor, " b"]


def draw(objective: Objective, seed: int, places: Sequence[int], like: Float[Tensor, "b v c h w"]) -> Draws:
    """The draws of scenes at some places of a run, for latents like these."""
    numbers = [generator(seed, "level", place) for place in places]
    level = torch.tensor([rng.standard_normal() for rng in numbers])
    chance = torch.tensor([[rng.random(), rng.random()] for rng in numbers])
    images = chance[:, 0] < objective.drop
    identity = images if objective.drop_mode == "joint" else chance[:, 1] < objective.drop
    noise = gaussian(seed, "noise", places, like)
    return Draws(noise, *(t.to(like.device) for t in (level, images, identity)))


def gaussian(seed: int, purpose: str, places: Sequence[int], like: Float[Tensor, " b *c"]) -> Float[Tensor, " b *c"]:
    """Standard normal numbers, drawn on the device and place by place."""
    out = torch.empty_like(like, dtype=torch.float32)
    on_device = torch.Generator(like.device)
    for of_scene, place in zip(out, places, strict=True):
        on_device.manual_seed(int(generator(seed, purpose, place).integers(2**63)))
        of_scene.normal_(generator=on_device)
    return out


def losses(
    network: Network,
    scene: Scene,
    latents: Float[Tensor, "b v c h w"],
    draws: Draws,
    objective: Objective,
    nothing: Nothing,
) -> Float[Tensor, " b"]:
    """Per scene, the mean square over its targets of what v-prediction misses; `scene.clean` is not dropped yet."""
    targets = (~scene.is_condition).sum(1).float()
    sigma = training_levels(objective.noise, draws.level, targets)
    return losses_at(
        network, without(scene, draws.drop_images, draws.drop_identity, nothing), latents, draws.noise, sigma
    )


def losses_at(
    network: Network,
    scene: Scene,
    latents: Float[Tensor, "b v c h w"],
    noise: Float[Tensor, "b v c h w"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """The same at given noise levels, for scenes as they are."""
    x = given_in(scene, latents + like(sigma, latents) * noise)
    missed = (predict(network, scene, x, sigma).float() - v_target(latents, noise, sigma)).square().mean((2, 3, 4))
    is_target = (~scene.is_condition).float()
    return (missed * is_target).sum(1) / is_target.sum(1)
