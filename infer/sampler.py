"""Samples views of a head with a multiview model: from a photo, from several, from an identity, or from nothing.

`spinset views`, `spinset heads` and `spinset evaluate` sample through this file alone. Given views of later calls are the
latents that earlier calls sampled, so nothing is decoded and encoded in between. Source: SpinMeRound, sections 3.4 and 3.5,
and its released sampling function.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn.functional import interpolate

from geometry.cameras import orbit
from infer.config import INPAINT_STRENGTH, SamplerConfig
from infer.views import HeadViews, SamplerCall, ViewPlan
from jobs.devices import require_device
from jobs.progress import step
from manifests.errors import UserError
from train.diffusion.objective import gaussian
from train.diffusion.precision import autocast
from train.diffusion.process import DDPM
from train.diffusion.sampling import SAMPLERS, denoise, euler, guided, initial_latents, sample
from train.families import load_model
from train.networks.model import Model
from weights.embedded import model_folder


def open_sampler(model: str, config: SamplerConfig, device: str) -> "ViewSampler":
    """Load a model from its folder, or the embedded one by its name, onto a device.

    Raises:
        MissingFile: there is no such folder, or a part of the model is missing.
        UserError: the device cannot be used, a part of the model is damaged, or the model knows single pictures only.
    """
    require_device(device)
    with step("loading the model"):
        opened = load_model(model_folder(model), device)
        if not opened.config.multiview:
            raise UserError(f"{model} makes single pictures; give one that was trained on several views")
        return ViewSampler(opened, config)


@dataclass(frozen=True, eq=False)
class ViewSampler:
    """Samples views with a loaded model at the model's resolution."""

    model: Model
    config: SamplerConfig

    @property
    def scale(self) -> float:
        """The guidance scale: that of the settings, or the model's own."""
        return self.config.scale or self.model.about.scale

    def evaluations(self, plan: ViewPlan) -> int:
        """How often the network is evaluated for a plan: once per step; with Heun's method twice, except in the last step."""
        return len(plan.calls) * (self.config.steps if self.config.sampler != "heun" else 2 * self.config.steps - 1)

    @torch.inference_mode()
    def input_latents(
        self,
        rgb: Float32[Tensor, "3 x x"],
        identity: Float32[Tensor, " d"] | None,
        strength: float = INPAINT_STRENGTH["released"],
        normal: Float32[Tensor, "3 y y"] | None = None,
        evaluated: Callable[[], None] = lambda: None,
    ) -> Float[Tensor, "c h w"]:
        """The latents of a photo: its picture, and its normals if the model makes normals.

        `rgb` is in [-1, 1], of any size. `normal` are true normals at the model's resolution in [-1, 1]; without them the
        normals are in-painted, and pass through pictures (decoded, clamped and encoded again) as in the released code.
        `evaluated` is called in each step of in-painting.
        """
        model, resolution = self.model, self.model.about.resolution
        picture = interpolate(rgb[None], (resolution, resolution), mode="area")[:, None].to(model.device)
        if "normal" not in model.config.members:
            return model.encode(picture)[0, 0]
        if normal is not None:
            return model.encode(picture, normal[None, None].to(model.device))[0, 0]
        image = model.encode(picture, picture)[0, 0, : model.vae.channels]
        steps, seed = self.config.steps, self.config.seed
        inpainted = inpaint_normals(model, image, identity, strength, steps, seed, evaluated)
        decoded = model.decode(torch.cat([image, inpainted])[None, None])[1]
        return model.encode(picture, decoded)[0, 0]

    @torch.inference_mode()
    def sample(
        self,
        plan: ViewPlan,
        given: dict[int, Float[Tensor, "c h w"]],
        identity: Float[Tensor, " d"] | None,
        evaluated: Callable[[], None] = lambda: None,
    ) -> HeadViews:
        """Sample the views of a plan.

        `given` holds the latents of the photos by their positions in the plan, `identity` an ArcFace embedding of unit length;
        `evaluated` is called at each evaluation of the network.
        """
        latents = dict(given)
        for call in plan.calls:
            sampled = self._call(plan, call, latents, identity, evaluated)
            latents.update(zip(call.sampled, sampled, strict=True))
        wanted = list(plan.wanted)
        # View by view, so that memory does not grow with their number.
        parts = self.model.decode(torch.stack([latents[position] for position in wanted])[None])
        pictures = [part[0].float().cpu() for part in parts]
        return HeadViews(
            pictures[0],
            pictures[1] if len(pictures) > 1 else None,
            plan.azimuth[wanted].astype(np.float32),
            plan.elevation[wanted].astype(np.float32),
            np.array([position in given for position in wanted]),
            plan.cameras[wanted],
        )

    def _call(
        self,
        plan: ViewPlan,
        call: SamplerCall,
        latents: dict[int, Tensor],
        identity: Float[Tensor, " d"] | None,
        evaluated: Callable[[], None],
    ) -> Float[Tensor, "v c h w"]:
        """The latents of the views of one call."""
        model, device = self.model, self.model.device
        positions = [*call.given, *call.sampled]
        cells = model.about.resolution // model.vae.factor
        clean = torch.zeros(1, len(positions), model.latent_channels, cells, cells, device=device)
        for place, position in enumerate(call.given):
            clean[0, place] = latents[position]
        is_condition = torch.tensor([[position in call.given for position in positions]], device=device)
        embedding = None if identity is None else identity[None].to(device)
        conditions = model.conditions(plan.cameras[positions][None].to(device), is_condition, clean, embedding)
        shared = model.shared_noise
        # The noise of a view is a function of its direction, so that it does not depend on the other views of the plan.
        seeds = [0 if shared else direction_number(plan.azimuth[p], plan.elevation[p]) for p in positions]
        noise = gaussian(self.config.seed, "view noise", seeds, clean[0])[None]
        # Without a photo and without an identity the conditional branch equals the unconditional one.
        scale = self.scale if call.given or identity is not None else 1.0
        denoiser = guided(model.network, model.process, conditions, scale)

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            evaluated()
            return denoiser(x, sigma)

        sampler, sigmas = SAMPLERS[self.config.sampler], model.process.sigmas(self.config.steps)
        with autocast(self.config.precision, device):
            x = sample(counted, conditions, noise, sigmas, sampler, shared)
        return x[0, len(call.given) :]


def direction_number(azimuth: float, elevation: float) -> int:
    """A number for each direction, in thousandths of a degree; it keys the noise of the view."""
    return round(azimuth % 360 * 1000) * 1_000_000 + round((elevation + 90) * 1000)


@torch.inference_mode()
def inpaint_normals(
    model: Model,
    image: Float[Tensor, "c h w"],
    identity: Float[Tensor, " d"] | None,
    strength: float = INPAINT_STRENGTH["released"],
    steps: int = 50,
    seed: int = 0,
    evaluated: Callable[[], None] = lambda: None,
) -> Float[Tensor, "c h w"]:
    """The latents of a photo's normals from those of its picture, by channel-wise in-painting.

    The image channels are guided towards the photo while the normal channels are sampled; `evaluated` is called in each step.
    Source: SpinMeRound, section 3.5 and algorithm 1, and its released sampler.
    """
    known = torch.cat([image, image])[None, None]
    is_image = torch.zeros_like(known)
    is_image[:, :, : len(image)] = 1
    front = orbit(np.zeros(1), np.zeros(1)).to(known.device)
    no_condition = torch.zeros(1, 1, dtype=torch.bool, device=known.device)
    embedding = None if identity is None else identity[None].to(known.device)
    conditions = model.conditions(front[None], no_condition, torch.zeros_like(known), embedding)

    def guided_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        evaluated()
        return guide_towards(denoise(model.network, model.process, conditions, x, sigma), known, is_image, strength)

    sigmas = DDPM().legacy_sigmas(steps)
    # The purpose must not be renamed, because it keys the noise.
    initial = initial_latents(gaussian(seed, "own normals", [0], known), sigmas[0])
    return euler(guided_denoiser, initial.to(known), sigmas)[0, 0, len(image) :]


def guide_towards(
    denoised: Float[Tensor, "b v c h w"],
    known: Float[Tensor, "b v c h w"],
    mask: Float[Tensor, "b v c h w"],
    strength: float,
) -> Float[Tensor, "b v c h w"]:
    """Denoised latents moved towards known ones where the mask is 1: a step down the gradient of their squared difference."""
    return denoised - strength * mask * (denoised - known)
