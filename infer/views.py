"""Views of a head: the plan by which they are sampled, and the sampler.

SpinMeRound samples in two stages: seven anchors around the head from the photo, then all other views, five at a time, from the
photo and the two nearest anchors. DiffPortrait samples windows of eight neighbouring views from the photo alone. Directions are
in degrees; azimuths are relative to the first photo, positive towards the subject's left. Given views of later calls are the
latents that earlier calls sampled, so nothing is decoded and encoded in between. `spinset views`, `spinset heads` and
`spinset evaluate` sample through this file alone.

Sources: SpinMeRound, sections 3.4 and 3.5, and its released sampling function; where the paper is silent, a sector that touches
the photo takes the two anchors nearest to its middle beside it, the more frontal of two that are equally near. DiffPortrait360,
section 3 and its released code, whose windows do not overlap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geometry.cameras import Cameras, from_view_rotation, orbit, spinmeround_rotation
from geometry.directions import turned, wrapped
from infer.config import INPAINT_STRENGTH, SamplerConfig
from jobs.devices import require_device
from jobs.progress import step
from manifests.errors import UserError
from train.diffusion.conditions import Conditions
from train.diffusion.process import (
    DDPM,
    SAMPLERS,
    Denoiser,
    ddim,
    denoise,
    euler,
    gaussian,
    guided,
    initial_latents,
    proxy_noise,
    sample,
)
from train.families import load_model
from train.networks.config import ModelConfig
from train.networks.model import Model, autocast

ANCHORS = (45.0, -45.0, 90.0, -90.0, 135.0, -135.0, 180.0)
"""Azimuths of the anchors. Source: SpinMeRound, section 3.4."""
SECTOR = 45.0
"""Width of the sectors between anchors, in degrees; views of one sector share their two anchors."""
SECOND_STAGE_VIEWS = 5
"""Views per call of the second stage, which with three given ones are the eight that models are trained on."""
MAX_STEPS = 2048
"""More than the steps of any sampler; numbers of directions are multiplied by it, so that each step has its own noise."""
ONE_STAGE_VIEWS = 7
"""Views per call where all are sampled from the photo alone; with it they are eight, too."""


@dataclass(frozen=True, eq=False)
class HeadViews:
    """v views of one head in the order in which they were asked for: sRGB over white, normals over grey, both in [-1, 1]."""

    rgb: Float32[Tensor, "v 3 h w"]
    normal: Float32[Tensor, "v 3 h w"] | None
    """Unit normals in camera space, or None if the model makes none."""
    azimuth: Float32[np.ndarray, " v"]
    """Azimuths in degrees from the first photo, or from the front if there is none."""
    elevation: Float32[np.ndarray, " v"]
    """Elevations in degrees."""
    is_condition: Bool[np.ndarray, " v"]
    """Whether a view is one of the photos."""
    cameras: Cameras
    """The cameras of the views."""

    def __len__(self) -> int:
        return len(self.azimuth)

    @property
    def resolution(self) -> int:
        return self.rgb.shape[-1]


@dataclass(frozen=True)
class SamplerCall:
    """One run of the sampler, by positions in the plan: given views, of which the first is the reference, and sampled ones."""

    given: tuple[int, ...]
    sampled: tuple[int, ...]
    windows: tuple[tuple[int, ...], ...] = ()
    """Views that the network sees together, if not all; in each step the estimates of views in several windows are averaged."""


@dataclass(frozen=True, eq=False)
class ViewPlan:
    """Directions and cameras of the n views that are needed, the first photo at position 0, and the calls that sample them."""

    azimuth: Float[np.ndarray, " n"]
    """Azimuths in degrees from the first photo, within [-180, 180)."""
    elevation: Float[np.ndarray, " n"]
    """Elevations in degrees."""
    cameras: Cameras
    """The camera of each view; only its rotation against the reference's matters."""
    photos: tuple[int, ...]
    """Positions of the photos, in their order."""
    calls: tuple[SamplerCall, ...]
    """The calls, in an order in which every view is sampled before it is given."""
    wanted: tuple[int, ...]
    """Positions of the views that were asked for, in their order."""

    @property
    def call_numbers(self) -> Int[np.ndarray, " v"]:
        """The number of the call, or of the window, that samples each wanted view first; -1 for photos."""
        groups = [group for call in self.calls for group in call.windows or (call.sampled,)]
        numbers = {position: number for number, group in reversed([*enumerate(groups)]) for position in group}
        return np.array([numbers.get(position, -1) for position in self.wanted])


def ring(views: int) -> Float[np.ndarray, " v"]:
    """Azimuths evenly spaced around the head from the front on; 48, 88 and 128 fill whole calls (8 + 8 times 5, 10, 15)."""
    return np.arange(views) * 360.0 / views


def plan_views(
    azimuth: Float[np.ndarray, " v"],
    elevation: Float[np.ndarray, " v"],
    photos: Sequence[float] = (0.0,),
    photo_elevation: float = 0.0,
    stages: int = 2,
    angles: Literal["orbit", "spinmeround"] = "orbit",
) -> ViewPlan:
    """Plan how views in any directions are sampled.

    `photos` are the azimuths of the photos, the first of them 0, all at `photo_elevation`; without photos the front is sampled
    together with the anchors. With one stage all views are sampled from the photos alone, without anchors. `angles` says
    whether directions are those of cameras on an orbit, or yaw and pitch of the head (see `spinmeround_rotation`).

    Raises:
        UserError: no views are asked for, one is seen from straight above or below, or two photos share a direction.
    """
    if len(azimuth) == 0:
        raise UserError("no views are asked for; give at least one azimuth")
    if np.abs(elevation).max() >= 90:
        raise UserError(f"elevation {elevation[np.abs(elevation).argmax()]:g} has no upright view; stay within 90")
    base = [0.0, *ANCHORS] if stages == 2 else [0.0]
    directions: list[tuple[float, float]] = []
    positions: dict[tuple[float, float], int] = {}

    def position_of(a: float, e: float) -> int:
        """The position of a direction, which is added if it is new; equal ones differ by less than a millionth of a degree."""
        key = round(wrapped(a), 6) % 360, round(e, 6)
        if key not in positions:
            positions[key] = len(directions)
            directions.append((a, e))
        return positions[key]

    for a in base:
        position_of(a, photo_elevation)
    wanted = [position_of(wrapped(a), e) for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True)]
    given: list[int] = []
    for a in map(wrapped, photos):
        if (position := position_of(a, photo_elevation)) in given:
            raise UserError(f"two photos are turned by {a:g} degrees; give each its own side")
        given.append(position)
    further = [position for position in dict.fromkeys(wanted) if position >= len(base)]
    if stages == 2:
        calls = [SamplerCall(tuple(given), tuple(range(len(base)))), *_between_anchors(directions, further)]
    else:
        missing = [position for position in dict.fromkeys(wanted) if position not in given]
        groups = np.array_split(missing, -(-len(missing) // ONE_STAGE_VIEWS) or 1)
        calls = [SamplerCall(tuple(given), tuple(group.tolist())) for group in groups]
    calls = [SamplerCall(call.given, tuple(p for p in call.sampled if p not in given)) for call in calls]
    a, e = np.array(directions).T
    if angles == "orbit":
        cameras = orbit(a, e)
    else:
        yaw, pitch = torch.tensor(a), torch.tensor(e)
        cameras = from_view_rotation(spinmeround_rotation(pitch, yaw, torch.zeros_like(yaw)).float())
    return ViewPlan(a, e, cameras, tuple(given), tuple(call for call in calls if call.sampled), tuple(wanted))


def plan_windows(
    azimuth: Float[np.ndarray, " v"],
    elevation: Float[np.ndarray, " v"],
    photos: Sequence[float],
    photo_elevation: float = 0.0,
    window: int = 8,
    overlap: int = 0,
) -> ViewPlan:
    """Plan how views are sampled in windows of neighbours, in the order in which they are given.

    All views are sampled, those in the direction of a photo too, as in the released code. With an overlap, windows of views
    that go all around the head close the ring.
    """
    if len(azimuth) == 0:
        raise UserError("no views are asked for; give at least one azimuth")
    a = np.concatenate([wrapped(np.array(photos, np.float64)), wrapped(azimuth)])
    e = np.concatenate([np.full(len(photos), photo_elevation), elevation])
    given, sampled = tuple(range(len(photos))), tuple(range(len(photos), len(a)))
    closed = bool(np.ptp(wrapped(np.diff(azimuth, append=azimuth[0]))) < 1e-6) and len(set(elevation.tolist())) == 1
    windows = tuple(tuple(sampled[p] for p in one) for one in windows_of(len(sampled), window, overlap, closed))
    return ViewPlan(a, e, orbit(a, e), given, (SamplerCall(given, sampled, windows),), sampled)


def windows_of(views: int, window: int, overlap: int, closed: bool) -> list[tuple[int, ...]]:
    """Windows that cover a row of views and share `overlap` views with the next; on a closed row the last meets the first."""
    stride = window - overlap
    if views <= window:
        return [tuple(range(views))]
    if closed and overlap:
        return [tuple((start + k) % views for k in range(window)) for start in range(0, views, stride)]
    return [tuple(range(start, min(start + window, views))) for start in range(0, views - overlap, stride)]


def plan_of(
    model: ModelConfig,
    azimuth: Float[np.ndarray, " v"],
    elevation: Float[np.ndarray, " v"],
    photos: Sequence[float] = (0.0,),
    photo_elevation: float = 0.0,
    stages: int = 2,
    angles: Literal["orbit", "spinmeround"] = "orbit",
    overlap: int = 0,
) -> ViewPlan:
    """The plan by which a model is sampled, as its config says; see `plan_views` and `plan_windows`."""
    if model.window:
        return plan_windows(azimuth, elevation, photos, photo_elevation, model.window, overlap)
    return plan_views(azimuth, elevation, photos, photo_elevation, stages, angles)


def _between_anchors(directions: list[tuple[float, float]], positions: list[int]) -> list[SamplerCall]:
    """Calls of the second stage, sector by sector."""
    sectors: dict[int, list[int]] = {}
    for position in positions:
        sectors.setdefault(int(np.floor(directions[position][0] / SECTOR)), []).append(position)
    return [
        SamplerCall((0, *nearest_anchors((sector + 0.5) * SECTOR)), tuple(members[i : i + SECOND_STAGE_VIEWS]))
        for sector, members in sorted(sectors.items())
        for i in range(0, len(members), SECOND_STAGE_VIEWS)
    ]


def nearest_anchors(azimuth: float) -> tuple[int, int]:
    """Positions in a plan of the two anchors nearest to an azimuth; of two that are equally near, the more frontal."""
    anchors = np.array(ANCHORS)
    order = np.lexsort((anchors, turned(anchors), turned(anchors - azimuth).round(6)))
    return int(order[0]) + 1, int(order[1]) + 1


def open_sampler(model: str, config: SamplerConfig, device: str, several: bool = True) -> "ViewSampler":
    """Load a model from its folder, or the embedded one by its name, onto a device.

    `several` requires a model that makes several views together.

    Raises:
        MissingFile: there is no such folder, or a part of the model is missing.
        UserError: the device cannot be used, a part of the model is damaged, or the model makes single pictures only.
    """
    require_device(device)
    with step("loading the model"):
        opened = load_model(model, "cpu" if config.offload else device)
        if config.offload:
            if device == "cpu":
                raise UserError("--offload keeps weights outside of a GPU; give --device cuda with it, or leave it out")
            opened = offloaded(opened, device)
        if several and not opened.config.multiview:
            raise UserError(f"{model} makes single pictures; give one that was trained on several views")
        return ViewSampler(opened, config)


def offloaded(model: Model, device: str) -> Model:
    """The model itself, computing on a device; each layer of its network is there only while it computes."""

    def bring(layer: nn.Module, _: object) -> None:
        layer.to(device)

    def put_back(layer: nn.Module, _: object, __: object) -> None:
        layer.to("cpu")

    model.vae.model.to(device)
    for encoder in model.encoders.values():
        encoder.to(device)
    # Without gradients autocast keeps no copies of the weights on the device.
    model.network.requires_grad_(False)
    for layer in model.network.modules():
        if [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
            layer.register_forward_pre_hook(bring)
            layer.register_forward_hook(put_back)
    return model


@dataclass(frozen=True, eq=False)
class ViewSampler:
    """Samples views with a loaded model at the model's resolution."""

    model: Model
    config: SamplerConfig

    @property
    def scale(self) -> float:
        """The guidance scale: that of the settings, or the model's own."""
        return self.config.scale or self.model.about.scale

    @property
    def eta(self) -> float:
        """The share of new noise in each step: that of the settings, or the model's own if the sampler can add noise."""
        if self.config.eta is None:
            return 0.0 if self.config.sampler == "heun" else self.model.config.eta
        return self.config.eta

    def evaluations(self, plan: ViewPlan) -> int:
        """How often the network is evaluated for a plan: once per step; with Heun's method twice, except in the last step."""
        steps = len(self.model.process.sigmas(self.config.steps)) - 1
        groups = sum(len(call.windows) or 1 for call in plan.calls)
        return groups * (steps if self.config.sampler != "heun" else 2 * steps - 1)

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
        control: Float32[Tensor, "k 3 x x"] | None = None,
        proxies: Float32[Tensor, "k 3 y y"] | None = None,
    ) -> HeadViews:
        """Sample the views of a plan.

        `given` holds the latents of the photos by their positions in the plan, `identity` an ArcFace embedding of unit length;
        `evaluated` is called at each evaluation of the network. `control` and `proxies` are pictures of the wanted views in
        [-1, 1] of any size: of a stranger, for models that need them, and coarse ones, where sampling starts.
        """
        latents = dict(given)
        hints = {} if control is None else dict(zip(plan.wanted, self._pictures(control), strict=True))
        coarse = {}
        if proxies is not None:
            coarse = dict(zip(plan.wanted, self.model.encode(self._pictures(proxies)[None])[0], strict=True))
        for call in plan.calls:
            sampled = self._call(plan, call, latents, identity, evaluated, hints, coarse)
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
        hints: dict[int, Tensor],
        coarse: dict[int, Tensor],
    ) -> Float[Tensor, "v c h w"]:
        """The latents of the views of one call; control pictures and latents of proxies are given by position in the plan."""
        model, device = self.model, self.model.device
        positions, given = [*call.given, *call.sampled], len(call.given)
        cells = model.about.resolution // model.vae.factor
        clean = torch.zeros(1, len(positions), model.latent_channels, cells, cells, device=device)
        for place, position in enumerate(call.given):
            clean[0, place] = latents[position]
        shared = model.shared_noise
        # The noise of a view is a function of its direction, so that it does not depend on the other views of the plan.
        seeds = [0 if shared else direction_number(plan.azimuth[p], plan.elevation[p]) for p in positions]
        noise = gaussian(self.config.seed, "view noise", seeds, clean[0])[None]
        if coarse:
            of_views = torch.stack([coarse[position] for position in call.sampled])[None]
            noise[:, given:] = proxy_noise(noise[:, given:], of_views, model.process)
        # Without a photo and without an identity the conditional branch equals the unconditional one.
        scale = self.scale if call.given or identity is not None else 1.0
        embedding = None if identity is None else identity[None].to(device)
        is_condition = torch.arange(len(positions), device=device)[None] < given

        def conditions_of(places: list[int]) -> Conditions:
            """The conditions of some of the views of the call."""
            used, control = [positions[place] for place in places], None
            if hints:
                blank = torch.zeros_like(next(iter(hints.values())))
                control = torch.stack([hints.get(position, blank) for position in used])[None]
            cameras = plan.cameras[used][None].to(device)
            return model.conditions(cameras, is_condition[:, places], clean[:, places], embedding, control)

        def counted(places: list[int]) -> Denoiser:
            """The denoiser of some of the views of the call."""
            denoiser = guided(model.network, model.process, conditions_of(places), scale)

            def denoise_and_count(x: Tensor, sigma: Tensor) -> Tensor:
                evaluated()
                return denoiser(x, sigma)

            return denoise_and_count

        def step_noise(step: int) -> Tensor:
            return gaussian(self.config.seed, "step noise", [seed * MAX_STEPS + step for seed in seeds], clean[0])[None]

        windows = call.windows or (call.sampled,)
        groups = [[*range(given), *map(positions.index, window)] for window in windows]
        denoiser = averaged([counted(group) for group in groups], groups)
        sampler, sigmas = SAMPLERS[self.config.sampler], model.process.sigmas(self.config.steps)
        if self.eta:
            sampler = partial(ddim, eta=self.eta, noise=step_noise)
        with autocast(self.config.precision, device):
            x = sample(denoiser, conditions_of([*range(len(positions))]), noise, sigmas, sampler, shared)
        return x[0, given:]

    def _pictures(self, pictures: Float32[Tensor, "v 3 x x"]) -> Float32[Tensor, "v 3 y y"]:
        """Pictures at the model's resolution, on its device."""
        size = (self.model.about.resolution,) * 2
        return interpolate(pictures.to(self.model.device), size, mode="area")


def averaged(denoisers: Sequence[Denoiser], places: Sequence[Sequence[int]]) -> Denoiser:
    """The mean of the estimates of denoisers that each see some of the views. Source: MultiDiffusion (Bar-Tal et al. 2023)."""
    if len(denoisers) == 1:
        return denoisers[0]
    counts = torch.bincount(torch.tensor([place for seen in places for place in seen]))

    def mean(x: Float[Tensor, "b v c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b v c h w"]:
        total = torch.zeros_like(x)
        for denoiser, seen in zip(denoisers, places, strict=True):
            total[:, list(seen)] += denoiser(x[:, list(seen)], sigma)
        return total / counts.to(x)[:, None, None, None]

    return mean


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
