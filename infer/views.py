"""Makes the views of a plan: one head from a photo, from several, from an identity, or from nothing.

The given views of later calls are the latents that earlier calls made, so nothing is decoded and
encoded in between. Source: SpinMeRound, section 3.4 and its released sampling function.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import orbit
from infer.config import SamplerConfig
from infer.plan import Call, Plan
from infer.turn import Turn
from train.diffusion.objective import gaussian
from train.diffusion.precision import autocast
from train.diffusion.sampling import SAMPLERS, guided, sample
from train.networks.model import Model


@dataclass(frozen=True, eq=False)
class Painter:
    """A model ready to make views at its resolution."""

    model: Model
    config: SamplerConfig

    @property
    def cells(self) -> int:
        """Latent cells of a side."""
        return self.model.about.resolution // self.model.vae.factor

    @property
    def scale(self) -> float:
        """Of guidance."""
        return self.config.scale or self.model.about.scale

    def evaluations(self, plan: Plan) -> int:
        """How often the network is evaluated for a plan: once per step, or twice but in the last step with Heun's method."""
        return len(plan.calls) * (self.config.steps if self.config.sampler != "heun" else 2 * self.config.steps - 1)

    @torch.inference_mode()
    def paint(
        self,
        plan: Plan,
        given: dict[int, Float[Tensor, "c h w"]],
        embedding: Float[Tensor, " d"] | None,
        evaluated: Callable[[], None] = lambda: None,
    ) -> Turn:
        """Views of a plan from latents that are given, by their places in it.

        `evaluated` is called at each evaluation of the network.
        """
        latents = dict(given)
        for call in plan.calls:
            made = self._call(plan, call, latents, embedding, evaluated)
            latents.update(zip(call.made, made, strict=True))
        places = list(plan.wanted)
        parts = self.model.decode(torch.stack([latents[place] for place in places])[None])
        pictures = [part[0].float().cpu() for part in parts]
        return Turn(
            pictures[0],
            pictures[1] if len(pictures) > 1 else None,
            plan.azimuth[places].astype(np.float32),
            plan.elevation[places].astype(np.float32),
            np.array([place in given for place in places]),
        )

    def _call(
        self,
        plan: Plan,
        call: Call,
        latents: dict[int, Tensor],
        embedding: Float[Tensor, " d"] | None,
        evaluated: Callable[[], None],
    ) -> Float[Tensor, "v c h w"]:
        """The latents that one call makes."""
        places = [*call.given, *call.made]
        shape = (self.model.latent_channels, self.cells, self.cells)
        clean = torch.zeros(1, len(places), *shape, device=self.model.device)
        for at, place in enumerate(call.given):
            clean[0, at] = latents[place]
        is_condition = torch.tensor([[place in call.given for place in places]], device=clean.device)
        cameras = orbit(plan.azimuth[places], plan.elevation[places]).to(clean.device)
        identity = None if embedding is None else embedding[None].to(clean.device)
        conditions = self.model.conditions(cameras, is_condition, clean, identity)
        process, shared = self.model.process, self.model.shared_noise
        # A view's own noise is a function of its direction, so that what else is made does not matter.
        seeds = [0 if shared else direction_number(plan.azimuth[place], plan.elevation[place]) for place in places]
        noise = gaussian(self.config.seed, "view noise", seeds, clean[0])[None]
        # Without a photo and without an identity both branches are one.
        scale = self.scale if call.given or embedding is not None else 1.0
        denoise = guided(self.model.network, process, conditions, scale)

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            evaluated()
            return denoise(x, sigma)

        sigmas = process.sigmas(self.config.steps)
        with autocast(self.config.precision, clean.device):
            x = sample(counted, conditions, noise, sigmas, SAMPLERS[self.config.sampler], shared)
        return x[0, len(call.given) :]


def direction_number(azimuth: float, elevation: float) -> int:
    """Of a direction, in thousandths of a degree."""
    return round(azimuth % 360 * 1000) * 1_000_000 + round((elevation + 90) * 1000)


def between(
    one: Float[Tensor, " d"], other: Float[Tensor, " d"], shares: Float[np.ndarray, " n"]
) -> Float[Tensor, "n d"]:
    """Identities between two, at unit length again as the encoder knows them."""
    t = torch.from_numpy(shares).to(one)[:, None]
    return torch.nn.functional.normalize(one * (1 - t) + other * t, dim=-1)
