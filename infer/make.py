"""The commands `spinset views` and `spinset heads`: they sample views of a person or of new people, and write them."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save
from torch import Tensor

from infer.config import HeadsConfig, PortraitConfig, ViewsConfig
from infer.inputs import BACK, ControlPictures, check_inputs, open_control, proxy_files, read_squares
from infer.outputs.write import check_outputs, write_outputs
from infer.photo import read_photo
from infer.portrait import load_preprocessor
from infer.views import ViewPlan, ViewSampler, open_sampler, plan_of, plan_views, plan_windows
from jobs.devices import require_device
from jobs.progress import step
from manifests.errors import MissingFile, UserError
from manifests.pictures import encode_picture
from train.batch import from_bytes, to_bytes
from train.families import read_about
from train.networks.config import About
from train.networks.model import precision_line
from weights.embedded import RECOGNISER, is_embedded
from weights.files import sha256

IDENTITY = "identity"
"""The name of the embedding in identity.safetensors, and the stem of that file."""
DIMENSIONS = 512
"""Numbers of an identity embedding, as Arc2Face's text encoder reads them."""
EXTRA_GUIDANCE_WITHOUT_PHOTO = 0.5
"""Increase of the guidance scale for heads without a photo. Source: SpinMeRound, 3.5 against 3."""


def views(config: ViewsConfig) -> Iterator[str]:
    """Write views all around a person; yields lines for the user.

    Raises:
        MissingFile: a file is missing; the message names it.
        UserError: a photo or a setting cannot be used.
    """
    # Cheap checks come before the face models are loaded, and those before the multiview model.
    check_outputs(config.out, config.files.outputs, config.files.fps)
    require_device(config.device)
    photos = [read_photo(file) for file in config.photos]
    check_inputs(config)
    model, about = read_about(config.model)
    directions = config.directions.of_views(model.azimuths)
    azimuths = [0.0, *config.photo_azimuths, *([BACK] if config.back else [])]
    overlap, angles = config.sampler.overlap, config.directions.angles
    plan = plan_of(model, *directions, photos=azimuths, angles=angles, overlap=overlap)
    control = open_control(config.control, *directions) if config.control else None
    with step("reading the photos"):
        preprocess = load_preprocessor(with_recogniser(config, about), config.device)
        portraits = [preprocess(photo) for photo in photos]
    sampler = open_sampler(config.model, config.sampler, config.device)
    print(precision_line(config.sampler.precision, config.device), file=sys.stderr, flush=True)
    identities = [portrait.identity if about.identity else None for portrait in portraits]
    given = {}
    for position, portrait, identity in zip(plan.photos, portraits, identities, strict=False):
        with step("in-painting the normals of the photo", config.sampler.steps) as advance:
            given[position] = sampler.input_latents(portrait.rgb, identity, config.inpaint_strength, evaluated=advance)
    files = {}
    if config.back:
        generator = open_sampler(config.back, config.sampler, config.device, several=False)
        with step("sampling the back", generator.evaluations(plan_back())) as advance:
            back = sample_back(generator, portraits[0].rgb, control, advance)
        given[plan.photos[-1]] = sampler.input_latents(back, None)
        files["back.png"] = encode_picture(to_bytes(back[None])[0])
    pictures = None if control is None or "control" not in model.inputs else from_bytes(control.read(*directions))
    coarse = from_bytes(read_squares(proxy_files(config.proxies, len(plan.wanted)))) if config.proxies else None
    with step("sampling views", sampler.evaluations(plan)) as advance:
        sampled = sampler.sample(plan, given, identities[0], advance, pictures, coarse)
    notes = [note for portrait in portraits for note in portrait.notes]
    if config.back:
        notes.append(f"back.png is the back that was made as a reference, from azimuth {BACK:g}, elevation 0")
    if (identity := portraits[0].identity) is None:
        notes.append(f"without identity: {portraits[0].without_identity}")
    elif (used := preprocess.faces.arcface) and about.recogniser not in ("", used.sha256):
        notes.append("the model was trained with another recogniser, so the views may show another person")
    if identity is not None:
        files[f"{IDENTITY}.safetensors"] = save({IDENTITY: identity.contiguous()})
    notes += write_outputs(sampled, config.out, config.files.outputs, config.files.fps, files)
    yield f"{config.out}: {len(sampled)} views"
    yield from notes + model_notes(sampler, plan)


def plan_back() -> ViewPlan:
    """The plan of the single view from behind, from the front alone."""
    return plan_windows(np.array([BACK]), np.zeros(1), photos=(0.0,), window=1)


def sample_back(
    generator: ViewSampler,
    front: Float32[Tensor, "3 x x"],
    control: ControlPictures | None,
    evaluated: Callable[[], None] = lambda: None,
) -> Float32[Tensor, "3 h w"]:
    """The back that a generator makes of the front, both in [-1, 1], with the control picture from behind."""
    plan = plan_back()
    given = {0: generator.input_latents(front, None)}
    pictures = None if control is None else from_bytes(control.read(np.array([BACK]), np.zeros(1)))
    if "control" not in generator.model.config.inputs:
        pictures = None
    return generator.sample(plan, given, None, evaluated, pictures).rgb[0]


def with_recogniser(config: ViewsConfig, about: About) -> PortraitConfig:
    """The photo settings, with the embedded recogniser if none is named and the model was trained with that one.

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


def heads(config: HeadsConfig) -> Iterator[str]:
    """Write views of new people, each to a folder of its own; yields lines for the user.

    Raises:
        MissingFile: a file is missing; the message names it.
        UserError: a file holds no identity, or the model takes none.
    """
    folders = [str(Path(config.out) / f"head_{number:03d}") for number in range(config.heads)]
    for folder in folders:
        check_outputs(folder, config.files.outputs, config.files.fps)
    require_device(config.device)
    known = [read_identity(file) for file in config.identities]
    model, about = read_about(config.model)
    if model.window:
        raise UserError(f"{config.model} makes views of a photo; spinset views takes it")
    plan = plan_views(*config.directions.of_views(model.azimuths), photos=(), angles=config.directions.angles)
    if known and not about.identity:
        raise UserError(f"{config.model} was trained without identities; leave out --identities")
    sampler = open_sampler(config.model, config.sampler, config.device)
    identities: list[Tensor | None] = [known[0] if known else None] * config.heads
    if len(known) == 2:
        identities = list(interpolate_identities(known[0], known[1], np.linspace(0, 1, config.heads)))
    print(precision_line(config.sampler.precision, config.device), file=sys.stderr, flush=True)
    scale = config.sampler.scale or sampler.scale + EXTRA_GUIDANCE_WITHOUT_PHOTO
    for number, (folder, identity) in enumerate(zip(folders, identities, strict=True)):
        # Between two people all heads have the same noise, so that only the identity changes; otherwise each has its own.
        seed = config.sampler.seed + (0 if len(known) == 2 else number)
        of_head = replace(sampler, config=replace(config.sampler, seed=seed, scale=scale))
        with step(f"sampling head {number + 1} of {config.heads}", of_head.evaluations(plan)) as advance:
            sampled = of_head.sample(plan, {}, identity, advance)
        yield f"{folder}: {len(sampled)} views"
        yield from write_outputs(sampled, folder, config.files.outputs, config.files.fps)
    yield from model_notes(sampler, plan)


def read_identity(file: str) -> Float[Tensor, " d"]:
    """An identity embedding of unit length from a safetensors file.

    Raises:
        MissingFile: there is no such file.
        UserError: the file holds no identity.
    """
    if not Path(file).is_file():
        raise MissingFile(f"{file} does not exist; spinset views writes identity.safetensors next to its views")
    try:
        identity = torch.from_numpy(load_file(file)[IDENTITY])
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{file} holds no identity ({error})") from error
    if identity.shape != (DIMENSIONS,) or not torch.isfinite(identity).all() or not float(identity.norm()):
        raise UserError(
            f"{file} holds {tuple(identity.shape)} numbers; an identity is {DIMENSIONS}, finite and not all zero"
        )
    return torch.nn.functional.normalize(identity.float(), dim=0)


def interpolate_identities(
    first: Float[Tensor, " d"], second: Float[Tensor, " d"], shares: Float[np.ndarray, " n"]
) -> Float[Tensor, "n d"]:
    """Identities between two, brought to unit length again; a share of 0 is the first, 1 the second."""
    t = torch.from_numpy(shares).to(first)[:, None]
    return torch.nn.functional.normalize(first * (1 - t) + second * t, dim=-1)


def model_notes(sampler: ViewSampler, plan: ViewPlan) -> list[str]:
    """Remarks on what a model was trained on, and on numbers of given views in a plan that it was not trained on."""
    about = sampler.model.about
    notes = [f"the model knows {about.trained_on} of {about.resolution} px"] if about.trained_on else []
    if new := sorted({len(call.given) for call in plan.calls} - set(about.conditions)):
        numbers = " and ".join(map(str, new))
        notes.append(f"the model was not trained on {numbers} given views, which some of these were made from")
    return notes
