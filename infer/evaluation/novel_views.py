"""Makes views of held-out people from one of theirs, from exactly where their true views were seen.

Everything else a model makes stands on an orbit; here cameras are the true ones, so that pictures can be compared
pixel by pixel. Source: SpinMeRound, section 3.4 for one and two stages.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from geometry.cameras import Cameras, orbit
from infer.config import PULL
from infer.evaluation.held_out import HeldOut
from infer.own_normals import own_normals
from infer.plan import ANCHORS, AT_ONCE, SECTOR, Call, nearest_anchors
from manifests.draws import generator
from manifests.errors import UserError
from train.diffusion.objective import gaussian
from train.diffusion.sampling import guided, sample
from train.networks.model import Model

ONE_STAGE = 7
"""Views made at once from the input alone, which with it are the eight a model is trained on."""


@dataclass(frozen=True)
class NovelViews:
    """How views are made."""

    steps: int
    scale: float
    seed: int = 0
    stages: int = 1
    """1 makes all views from the input, 2 makes seven anchors around the head first."""
    normals: Literal["own", "stored"] = "own"
    """The normals of the input: in-painted, as for a photo, or the true ones."""
    pull: float = PULL["released"]


@dataclass(frozen=True, eq=False)
class Shown:
    """Views that claim to show a person as the true ones do; pictures in [-1, 1]."""

    rgb: Float32[Tensor, "k 3 h w"]
    normal: Float32[Tensor, "k 3 h w"] | None
    cameras: Cameras
    """Where they were seen from, which for a baseline is not where they should be."""
    points: Float[np.ndarray, "5 3"]
    call: Int[np.ndarray, " k"] | None = None
    """Which call of the sampler made each view."""


def number_of(name: str) -> int:
    """What draws of a person are keyed by."""
    return int(name) if name.isdecimal() else zlib.crc32(name.encode())


@torch.inference_mode()
def make_views(model: Model, held: HeldOut, embedding: Float32[np.ndarray, " d"] | None, how: NovelViews) -> Shown:
    """All views of a person but the first, from the first and its identity; from that alone if the model takes no input.

    Raises:
        ValueError: the model knows no views, or true normals are asked for that are not there.
    """
    if not model.config.multiview:
        raise UserError("the model makes single pictures; give one that was trained on several views")
    device = model.device
    identity = None if embedding is None else torch.from_numpy(embedding).to(device)
    if max(model.about.conditions):
        cameras, calls = _planned(held, how.stages)
        latents = {0: _input_latents(model, held, identity, how)}
    else:
        cameras, calls, latents = held.cameras, _groups(len(held), ()), {}
    seed = int(generator(how.seed, "evaluation noise", number_of(held.name)).integers(2**31))
    for call in calls:
        places = [*call.given, *call.made]
        cells = model.about.resolution // model.vae.factor
        clean = torch.zeros(1, len(places), model.latent_channels, cells, cells, device=device)
        for at, place in enumerate(call.given):
            clean[0, at] = latents[place]
        given = torch.tensor([[place in call.given for place in places]], device=device)
        identities = None if identity is None else identity[None]
        conditions = model.conditions(cameras[places].to(device), given, clean, identities)
        noise = gaussian(seed, "sample", [0], clean)
        denoiser = guided(model.network, model.process, conditions, how.scale)
        sigmas = model.process.sigmas(how.steps)
        made = sample(denoiser, conditions, noise, sigmas, shared_noise=model.shared_noise)[0]
        latents.update(zip(call.made, made[len(call.given) :], strict=True))
    parts = model.decode(torch.stack([latents[place] for place in range(1, len(held))])[None])
    pictures = [part[0].float().cpu() for part in parts]
    normal = pictures[1] if len(pictures) > 1 else None
    made_by = {place: number for number, call in enumerate(calls) for place in call.made}
    call = np.array([made_by[place] for place in range(1, len(held))])
    return Shown(pictures[0], normal, held.cameras[slice(1, None)], held.points, call)


def _groups(views: int, given: tuple[int, ...]) -> list[Call]:
    """All views but the first in calls of about equal size."""
    groups = np.array_split(np.arange(1, views), -(-(views - 1) // ONE_STAGE))
    return [Call(given, tuple(group.tolist())) for group in groups]


def _planned(held: HeldOut, stages: int) -> tuple[Cameras, list[Call]]:
    """Cameras of the views and of anchors behind them, and the calls that make them."""
    if stages == 1:
        return held.cameras, _groups(len(held), (0,))
    azimuth, elevation, first = float(held.azimuth[0]), float(held.elevation[0]), len(held)
    anchors = orbit(azimuth + np.array(ANCHORS), np.full(len(ANCHORS), elevation))
    cameras = Cameras(torch.cat([held.cameras.c2w, anchors.c2w]), torch.cat([held.cameras.K, anchors.K]))
    calls = [Call((0,), tuple(range(first, first + len(ANCHORS))))]
    sectors: dict[int, list[int]] = {}
    for target in range(1, first):
        away = (float(held.azimuth[target]) - azimuth + 180) % 360 - 180
        sectors.setdefault(int(np.floor(away / SECTOR)), []).append(target)
    for sector, places in sorted(sectors.items()):
        beside = tuple(first + anchor - 1 for anchor in nearest_anchors((sector + 0.5) * SECTOR))
        calls += [Call((0, *beside), tuple(places[i : i + AT_ONCE])) for i in range(0, len(places), AT_ONCE)]
    return cameras, calls


def _input_latents(
    model: Model, held: HeldOut, identity: Float[Tensor, " d"] | None, how: NovelViews
) -> Float[Tensor, "c h w"]:
    """The input, with its normals if the model makes them."""
    picture = held.rgb[None, :1].to(model.device)
    if "normal" not in model.config.members:
        return model.encode(picture)[0, 0]
    if how.normals == "stored":
        if held.normal is None:
            raise UserError(f"identity {held.name} has no stored normals; give --input-normals own")
        return model.encode(picture, held.normal[None, :1].to(model.device))[0, 0]
    image = model.encode(picture, picture)[0, 0, : model.vae.channels]
    normals = own_normals(model, image, identity, how.pull, how.steps, how.seed)
    # Through pictures, as the released code does and `spinset views` too.
    shown = model.decode(torch.cat([image, normals])[None, None])[1]
    return model.encode(picture, shown)[0, 0]
