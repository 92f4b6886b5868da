"""The commands `spinset views` and `spinset heads`: from photos, an identity or nothing to a turn of views, and to files."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate

from infer.config import PULL, HeadsConfig, PortraitConfig, SamplerConfig, ViewsConfig
from infer.outputs.write import check, write
from infer.own_normals import own_normals
from infer.photo import read_photo
from infer.plan import Plan, plan_views
from infer.studio import Portrait, Studio
from infer.turn import Turn
from infer.views import Painter, between
from jobs.devices import require_device
from jobs.progress import step
from manifests.errors import MissingFile, UserError
from train.diffusion.precision import precision_line
from train.families import load_model, read_about
from train.networks.config import About
from weights.embedded import RECOGNISER, is_embedded, model_folder
from weights.files import sha256

IDENTITY = "identity"
DIMENSIONS = 512


ALONE = 0.5
"""How much more guidance a head takes without a picture (3.5 to 3 in the paper)."""


def open_painter(model: str, sampler: SamplerConfig, device: str) -> Painter:
    """A model ready to paint.

    Raises:
        FileNotFoundError, ValueError: there is no such model or device.
    """
    require_device(device)
    with step("loading the model"):
        opened = load_model(model_folder(model), device)
        return Painter(opened, sampler)


def given_latents(painter: Painter, portrait: Portrait, pull: float) -> Float[Tensor, "c h w"]:
    """The latents of a photo, with normals that are in-painted if the model makes them.

    The normals go through pictures, decoded, clamped and encoded again, as the released code does.
    """
    model, resolution = painter.model, painter.model.about.resolution
    identity = portrait.identity if model.about.identity else None
    picture = interpolate(portrait.rgb[None], (resolution, resolution), mode="area")[:, None].to(model.device)
    if "normal" not in model.config.members:
        return model.encode(picture)[0, 0]
    image = model.encode(picture, picture)[0, 0, : model.vae.channels]
    steps, seed = painter.config.steps, painter.config.seed
    with step("in-painting the normals of the photo", steps) as advance:
        normals = own_normals(model, image, identity, pull, steps, seed, advance)
    shown = model.decode(torch.cat([image, normals])[None, None])[1]
    return model.encode(picture, shown)[0, 0]


def views(config: ViewsConfig) -> Iterator[str]:
    """Write the turn of a person; says where it is, and what the person should know of it.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or a photo cannot be used; in one line.
    """
    check(config.out, config.files.outputs, config.files.fps)
    # What is quick to refuse comes first: the device, the photos, then the face models, then the model.
    require_device(config.device)
    for photo in config.photos:
        read_photo(photo)
    about = read_about(model_folder(config.model))[1]
    with step("reading the photos"):
        studio = Studio(with_recogniser(config, about), config.device)
        portraits = [studio.portrait(photo) for photo in config.photos]
    painter = open_painter(config.model, config.sampler, config.device)
    plan, places = with_photos(plan_views(*config.directions.of_views), config.photo_azimuths)
    print(precision_line(config.sampler.precision, config.device), file=sys.stderr, flush=True)
    turn = turn_of(painter, plan, places, portraits, config.pull)
    notes = [note for portrait in portraits for note in portrait.notes]
    if portraits[0].identity is None:
        notes.append(f"without identity: {portraits[0].without_identity}")
    elif (used := studio.faces.arcface) and painter.model.about.recogniser not in ("", used.sha256):
        notes.append("the model was trained with another recogniser, so it may see another person in this identity")
    identity = portraits[0].identity
    extra = {} if identity is None else {f"{IDENTITY}.safetensors": save({IDENTITY: identity.contiguous()})}
    notes += write(turn, config.out, config.files.outputs, config.files.fps, extra)
    yield f"{config.out}: {len(turn)} views"
    yield from notes + about_model(painter, plan)


def with_recogniser(config: ViewsConfig, about: About) -> PortraitConfig:
    """How photos become inputs of a model: by the embedded recogniser if none is named and the model was trained with it.

    Raises:
        UserError: the embedded recogniser is named for a model that was not trained with it, and not allowed.
    """
    portrait, face = config.portrait, config.portrait.face
    knows_embedded = about.recogniser == sha256(RECOGNISER)
    if not face.arcface and about.identity and knows_embedded:
        return replace(portrait, face=replace(face, arcface=str(RECOGNISER)))
    if face.arcface and is_embedded(face.arcface) and not knows_embedded and not config.allow_embedded:
        raise UserError(
            f"--face.arcface is the embedded recogniser, which knows procedural heads only, and {config.model} does not name "
            "it as the one it was trained with: give that one, or --allow-embedded"
        )
    return portrait


def turn_of(
    painter: Painter, plan: Plan, places: Sequence[int], portraits: Sequence[Portrait], pull: float = PULL["released"]
) -> Turn:
    """The views of a plan from portraits at some of its places; the first says who it is."""
    given = {place: given_latents(painter, portrait, pull) for place, portrait in zip(places, portraits, strict=True)}
    identity = portraits[0].identity if painter.model.about.identity else None
    with step("sampling views", painter.evaluations(plan)) as advance:
        return painter.paint(plan, given, identity, advance)


def with_photos(plan: Plan, azimuths: Iterable[float]) -> tuple[Plan, list[int]]:
    """A plan whose first call is given further photos, and the places of all photos.

    Raises:
        ValueError: two photos show the head from the same side.
    """
    directions, places = list(zip(plan.azimuth.tolist(), plan.elevation.tolist(), strict=True)), [0]
    for azimuth in azimuths:
        turned = (azimuth + 180) % 360 - 180
        near = [p for p, (a, e) in enumerate(directions) if e == 0 and abs((a - turned + 180) % 360 - 180) < 1e-6]
        place = near[0] if near else len(directions)
        if place in places:
            raise UserError(f"two photos are turned by {turned:g} degrees; give each its own side")
        if not near:
            directions.append((turned, 0.0))
        places.append(place)
    first, *later = plan.calls
    calls = [type(first)(tuple(places), tuple(m for m in first.made if m not in places))]
    calls += [type(c)(c.given, tuple(m for m in c.made if m not in places)) for c in later]
    found = np.array(directions)
    kept = tuple(call for call in calls if call.made)
    return Plan(found[:, 0], found[:, 1], kept, plan.wanted), places


def heads(config: HeadsConfig) -> Iterator[str]:
    """Write turns of new people, each to a folder of its own; says where they are.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is no identity.
    """
    folders = [str(Path(config.out) / f"head_{number:03d}") for number in range(config.heads)]
    for folder in folders:
        check(folder, config.files.outputs, config.files.fps)
    painter = open_painter(config.model, config.sampler, config.device)
    known = [read_identity(file) for file in config.identities]
    if known and not painter.model.about.identity:
        raise UserError(f"{config.model} was trained without identities; leave out --identities")
    people: list[Tensor | None] = [known[0] if known else None] * config.heads
    if len(known) == 2:
        people = list(between(known[0], known[1], np.linspace(0, 1, config.heads)))
    plan = plan_views(*config.directions.of_views, photos=0)
    print(precision_line(config.sampler.precision, config.device), file=sys.stderr, flush=True)
    scale = config.sampler.scale or painter.scale + ALONE
    for number, (folder, person) in enumerate(zip(folders, people, strict=True)):
        # Between two people the noise stays, so that nothing else changes; otherwise each head has its own.
        seed = config.sampler.seed + (0 if len(known) == 2 else number)
        own = replace(painter, config=replace(config.sampler, seed=seed, scale=scale))
        with step(f"sampling head {number + 1} of {config.heads}", own.evaluations(plan)) as advance:
            turn = own.paint(plan, {}, person, advance)
        yield from [f"{folder}: {len(turn)} views", *write(turn, folder, config.files.outputs, config.files.fps)]
    yield from about_model(painter, plan)


def read_identity(file: str) -> Float[Tensor, " d"]:
    """An embedding of unit length from a safetensors file; raises FileNotFoundError, ValueError if it is none."""
    if not Path(file).is_file():
        raise MissingFile(f"{file} is not there; spinset views writes identity.safetensors beside its views")
    try:
        found = torch.from_numpy(load_file(file)[IDENTITY])
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no identity ({error})") from error
    if found.shape != (DIMENSIONS,) or not torch.isfinite(found).all() or not float(found.norm()):
        raise UserError(
            f"{file} holds {tuple(found.shape)} numbers; an identity is {DIMENSIONS}, finite and not all zero"
        )
    return torch.nn.functional.normalize(found.float(), dim=0)


def about_model(painter: Painter, plan: Plan) -> list[str]:
    """What a model was trained on, and what a plan asks of it that it was not trained on."""
    model = painter.model
    notes = [f"the model knows {model.about.knows} of {model.about.resolution} px"] if model.about.knows else []
    if new := sorted({len(call.given) for call in plan.calls} - set(model.about.conditions)):
        numbers = " and ".join(map(str, new))
        notes.append(f"the model was not trained on {numbers} given views, which some of these were made from")
    return notes
