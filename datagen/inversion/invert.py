"""`spinset invert`: from pictures of a person to a folder that is a head source."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datagen.inversion.config import InvertConfig
from datagen.inversion.fit import Fit, average_style
from datagen.inversion.objective import Perceptual, Pictures, over_white, psnr, render
from datagen.sources.panohead.checkpoint import Checkpoint, Person, check_person, load, save
from geometry.cameras import Cameras, azimuth_elevation, orbit
from jobs.devices import require_device
from jobs.progress import step
from manifests.errors import MissingFile, UserError
from manifests.pictures import encode_picture

STATE, RESULT, DRAWN = "state.safetensors", "inversion.json", "fit.png"
POOR_PSNR, POOR_IDENTITY = 20.0, 0.4
"""PSNR in dB and cosine of identities below which a fit is poor."""
TURNS = (-135.0, -90.0, -45.0, 45.0, 90.0, 180.0)
"""Azimuths in degrees of the views that are drawn below the pictures."""

Likeness = Callable[[UInt8[np.ndarray, "v h w 3"], UInt8[np.ndarray, "v h w 3"], Cameras], list[float | None]]
"""The cosine of the faces in two sets of views from the same cameras; None for a view without a face."""


@dataclass(frozen=True)
class Inversion:
    """A finished inversion, and how closely it shows the pictures."""

    out: str
    family: str
    psnr: tuple[float, ...]
    """Peak signal-to-noise ratio of each picture over white, in dB."""
    identity: tuple[float | None, ...]
    """Cosine of the faces of each picture and of its fit; None without a recogniser or a face."""
    azimuth: tuple[float, ...]
    elevation: tuple[float, ...]
    """Directions of the cameras in degrees, as they were fitted."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The pictures that it shows poorly."""
        found = [
            f"picture {i}: {db:.1f} dB is a poor fit; check its crop and its camera, or give more --steps"
            for i, db in enumerate(self.psnr, 1)
            if db < POOR_PSNR
        ]
        return tuple(found) + tuple(
            f"picture {i}: the fit has a cosine of {cosine:.2f} with the face, so it may show another person"
            for i, cosine in enumerate(self.identity, 1)
            if cosine is not None and cosine < POOR_IDENTITY
        )

    def __str__(self) -> str:
        lines = []
        for i, (db, cosine, a, e) in enumerate(
            zip(self.psnr, self.identity, self.azimuth, self.elevation, strict=True), 1
        ):
            likeness = "" if cosine is None else f", identity {cosine:.2f}"
            lines.append(f"picture {i} from azimuth {a:.1f}, elevation {e:.1f}: {db:.1f} dB{likeness}")
        return "\n".join([*lines, *self.warnings])


def invert(
    config: InvertConfig,
    pictures: Pictures,
    perceptual: Perceptual | None = None,
    likeness: Likeness | None = None,
    settings: dict[str, Any] | None = None,
) -> Inversion:
    """Fit an identity to pictures and write it; the same call on the same folder resumes.

    Args:
        pictures: of one person over white, of any square size; they are resized to that of the generator.
        settings: what else determines the fit, as JSON values, such as the weights of the perceptual distance.

    Raises:
        MissingFile, UserError: the weights cannot be used, or the folder holds something else.
    """
    require_device(config.device)
    checkpoint = _open(config.weights)
    pictures = pictures.resized(checkpoint.generator.config.resolution)
    made_from = _lineage(config, checkpoint, pictures, settings or {})
    out = _open_folder(config.out, made_from)
    if (done := out / RESULT).exists():
        return _read(json.loads(done.read_text()), config.out)
    generator = checkpoint.generator.to(config.device)
    fit = Fit(generator, pictures.to(config.device), config.fit, perceptual)
    if (state := out / STATE).exists():
        fit.resume(state)
    with step("fitting the style, then the weights", fit.steps, fit.step) as advance:
        for _ in fit.run(config.save_every, advance):
            (out / DRAWN).write_bytes(draw(fit))
            fit.save(state)
    found = _measured(fit, checkpoint.official["family"], config.out, likeness)
    save(replace(checkpoint, person=Person(fit.ws.contiguous())), out, Path(config.weights).name)
    document = {**asdict(found), "warnings": found.warnings}
    del document["out"]  # the folder may be moved
    done.write_text(json.dumps(document, indent=1) + "\n")  # last: it marks the folder as finished
    state.unlink(missing_ok=True)
    return found


def from_planes(config: InvertConfig) -> str:
    """Write the folder of a head whose feature planes are in a file, and return the family of the generator.

    Raises:
        MissingFile, UserError: the weights or the planes cannot be used.
    """
    checkpoint = _open(config.weights)
    if not Path(config.planes).is_file():
        raise MissingFile(f"--planes: there is no file {config.planes}; give a .safetensors with the tensor planes")
    try:
        found = load_file(config.planes)
    except SafetensorError as error:
        raise UserError(f"--planes: {config.planes} is no .safetensors: {error}") from error
    generator = checkpoint.generator
    if "planes" not in found:
        raise UserError(f"--planes: {config.planes} has no tensor planes; it has {', '.join(sorted(found)) or 'none'}")
    planes = found["planes"].float()
    if planes.numel() != np.prod(generator.plane_shape):
        raise UserError(
            f"--planes: planes is {tuple(planes.shape)}; this generator takes {generator.plane_shape} or the same numbers "
            "with planes, features and depths as channels"
        )
    ws = found.get("ws", average_style(generator)).float().reshape(1, -1, generator.config.w_dim)
    person = Person(ws.expand(-1, generator.num_ws, -1).contiguous(), planes.reshape(generator.plane_shape))
    check_person(person, generator, config.planes)
    out = _open_folder(config.out, {"planes": person.sha256, "weights_sha256": checkpoint.sha256})
    save(replace(checkpoint, person=person), out, Path(config.weights).name)
    return checkpoint.official["family"]


@torch.no_grad()
def draw(fit: Fit) -> bytes:
    """A picture of the state: the given pictures, below them the fits from their cameras, and the head from other sides."""
    seen = [_bytes(fit.pictures.rgb), _bytes(over_white(render(fit.generator, fit.ws, fit.cameras)))]
    turns = orbit(np.array(TURNS), np.zeros(len(TURNS))).to(fit.offsets.device)
    rows = [np.concatenate(list(views), axis=1) for views in seen]
    rows.append(
        np.concatenate([_bytes(over_white(render(fit.generator, fit.ws, turns[[i]])))[0] for i in range(len(turns))], 1)
    )
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return encode_picture(np.concatenate(padded))


@torch.no_grad()
def _measured(fit: Fit, family: str, out: str, likeness: Likeness | None) -> Inversion:
    seen = render(fit.generator, fit.ws, fit.cameras)
    cosines: list[float | None] = [None] * len(fit.pictures)
    if likeness is not None:
        cosines = likeness(_bytes(fit.pictures.rgb), _bytes(over_white(seen)), fit.pictures.cameras.to("cpu"))
    azimuth, elevation = azimuth_elevation(fit.cameras.c2w)
    return Inversion(
        out,
        family,
        tuple(psnr(seen, fit.pictures).tolist()),
        tuple(cosines),
        tuple(azimuth.tolist()),
        tuple(elevation.tolist()),
    )


def _open(weights: str) -> Checkpoint:
    checkpoint = load(weights)
    if checkpoint.person is not None:
        raise UserError(f"--weights is {weights}, which is a person that was fitted; give the generator itself")
    return checkpoint


def _lineage(
    config: InvertConfig, checkpoint: Checkpoint, pictures: Pictures, settings: dict[str, Any]
) -> dict[str, Any]:
    """All that determines the result, as JSON values."""
    numbers = (pictures.rgb, pictures.alpha, pictures.cameras.c2w, pictures.cameras.K)
    digest = sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in numbers)).hexdigest()
    return {"weights_sha256": checkpoint.sha256, "pictures_sha256": digest, "fit": asdict(config.fit), **settings}


def _open_folder(folder: str, made_from: dict[str, Any]) -> Path:
    """The folder of an inversion; raises UserError if it holds another one, or anything else."""
    out, mark = Path(folder), "made_from.json"
    if (out / mark).exists():
        if json.loads((out / mark).read_text()) != made_from:
            raise UserError(
                f"{folder} holds another inversion; choose another folder, or the same pictures and settings"
            )
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{folder} exists and holds no inversion; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / mark).write_text(json.dumps(made_from, indent=1) + "\n")
    return out


def _read(document: dict[str, Any], out: str) -> Inversion:
    names = ("psnr", "identity", "azimuth", "elevation")
    return Inversion(out, document["family"], *(tuple(document[name]) for name in names))


def _bytes(pictures: Tensor) -> UInt8[np.ndarray, "v h w 3"]:
    """Pictures in [-1, 1] as bytes."""
    return (pictures.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
