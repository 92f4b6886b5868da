"""Normals of a photo by channel-wise in-painting: the image's latents are pulled to the photo's, those of normals are made.

Source: SpinMeRound, section 3.5 and algorithm 1, and its released sampler.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import orbit
from infer.config import PULL
from train.diffusion.objective import gaussian
from train.diffusion.process import DDPM
from train.diffusion.sampling import denoise, euler
from train.networks.model import Model


@torch.inference_mode()
def own_normals(
    model: Model,
    image: Float[Tensor, "c h w"],
    embedding: Float[Tensor, " d"] | None,
    pull: float = PULL["released"],
    steps: int = 50,
    seed: int = 0,
    evaluated: Callable[[], None] = lambda: None,
) -> Float[Tensor, "c h w"]:
    """Latents of the normals of a photo, from those of its picture; `evaluated` is called at each of the steps."""
    known = torch.cat([image, image])[None, None]
    is_image = torch.zeros_like(known)
    is_image[:, :, : len(image)] = 1
    front = orbit(torch.zeros(1).numpy(), torch.zeros(1).numpy()).to(known.device)
    made = torch.zeros(1, 1, dtype=torch.bool, device=known.device)
    identity = None if embedding is None else embedding[None].to(known.device)
    conditions = model.conditions(front, made, torch.zeros_like(known), identity)

    def pulled(x: Tensor, sigma: Tensor) -> Tensor:
        evaluated()
        return pull_towards(denoise(model.network, model.process, conditions, x, sigma), known, is_image, pull)

    levels = DDPM().legacy_sigmas(steps)
    start = gaussian(seed, "own normals", [0], known) * (1 + levels[0] ** 2) ** 0.5
    return euler(pulled, start.to(known), levels)[0, 0, len(image) :]


def pull_towards(
    believed: Float[Tensor, "b v c h w"],
    known: Float[Tensor, "b v c h w"],
    mask: Float[Tensor, "b v c h w"],
    pull: float,
) -> Float[Tensor, "b v c h w"]:
    """What the model believes, moved towards what is known: a step down the gradient of their squared difference."""
    return believed - pull * mask * (believed - known)
