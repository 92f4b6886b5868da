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
from train.diffusion.edm import edm_levels, euler, heun
from train.diffusion.objective import gaussian
from train.diffusion.precision import autocast
from train.diffusion.scene import Nothing, given_in, guided, start
from train.networks.model import Model

SAMPLERS = {"euler": euler, "heun": heun}


@dataclass(frozen=True, eq=False)
class Painter:
    """A model ready to make views at its resolution."""

    model: Model
    nothing: Nothing
    config: SamplerConfig

    @property
    def cells(self) -> int:
        return self.nothing.latents.shape[-1]

    @property
    def scale(self) -> float:
        """Of guidance."""
        return self.config.scale or self.model.about.scale

    def evaluations(self, plan: Plan) -> int:
        """How often the network is evaluated for a plan: once per step, or twice but in the last step with Heun's method."""
        return len(plan.calls) * (self.config.steps if self.config.sampler == "euler" else 2 * self.config.steps - 1)

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
        clean = self.nothing.latents.new_zeros(1, len(places), *self.nothing.latents.shape)
        for at, place in enumerate(call.given):
            clean[0, at] = latents[place]
        is_condition = torch.tensor([[place in call.given for place in places]], device=clean.device)
        cameras = orbit(plan.azimuth[places], plan.elevation[places]).to(clean.device)
        identity = None if embedding is None else embedding[None].to(clean.device)
        scene = self.model.scene(cameras, is_condition, clean, identity, self.nothing)
        most, shared = self.model.shape.sigma_max, self.model.shape.shared_noise
        # A view's own noise is a function of its direction, so that what else is made does not matter.
        seeds = [0 if shared else direction_number(plan.azimuth[place], plan.elevation[place]) for place in places]
        noise = gaussian(self.config.seed, "view noise", seeds, clean[0])[None]
        # Without a photo and without an identity both branches are one.
        scale = self.scale if call.given or embedding is not None else 1.0
        denoise = guided(self.model.network, scene, scale, self.nothing)

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            evaluated()
            return denoise(x, sigma)

        levels = edm_levels(self.config.steps, most=most)
        with autocast(self.config.precision, clean.device):
            x = SAMPLERS[self.config.sampler](counted, start(noise, most, shared), levels)
        return given_in(scene, x)[0, len(call.given) :]


def direction_number(azimuth: float, elevation: float) -> int:
    """Of a direction, in thousandths of a degree."""
    return round(azimuth % 360 * 1000) * 1_000_000 + round((elevation + 90) * 1000)


def between(
    one: Float[Tensor, " d"], other: Float[Tensor, " d"], shares: Float[np.ndarray, " n"]
) -> Float[Tensor, "n d"]:
    """Identities between two, at unit length again as the encoder knows them."""
    t = torch.from_numpy(shares).to(one)[:, None]
    return torch.nn.functional.normalize(one * (1 - t) + other * t, dim=-1)
