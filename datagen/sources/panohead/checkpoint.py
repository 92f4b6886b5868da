"""Checkpoints: official files read without executing them, converted to safetensors and JSON, loaded from either."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, get_args

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datagen.sources.panohead.build import build
from datagen.sources.panohead.config import Family, GeneratorConfig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.official_file import read_pickle
from manifests.errors import MissingFile, UserError
from weights.files import save_tensors, sha256

FORMAT = "spinset panohead 1"
CONFIG, WEIGHTS, PERSON = "config.json", "weights.safetensors", "person.safetensors"
LICENCE = (
    "Weights of PanoHead (CC BY-NC-SA 4.0) or SphereHead, derived from EG3D (NVIDIA Source Code Licence, non-commercial). "
    "They, and what is generated with them, are for non-commercial research use."
)


@dataclass(frozen=True, eq=False)
class Person:
    """The one identity of a folder that `spinset invert` wrote."""

    ws: Float[Tensor, "1 l s"]
    """The style of every layer."""
    planes: Tensor | None = None
    """The feature planes, where they are not those of the style, as `Generator.planes` returns them for one identity."""

    @property
    def sha256(self) -> str:
        """A hash of the numbers."""
        tensors = (self.ws, *(() if self.planes is None else (self.planes,)))
        return hashlib.sha256(b"".join(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A generator with its weights, and their origin."""

    generator: Generator
    sha256: str
    """SHA-256 of the official file, also after conversion; of the weights' file for a folder of `spinset invert`."""
    official: dict[str, Any]
    """The official constructor arguments, rendering options and attributes, as JSON."""
    person: Person | None = None
    """The identity that it holds instead of those of seeds."""


def load(path: str | Path) -> Checkpoint:
    """A checkpoint from an official .pkl or from a folder that `convert` wrote.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is not a PanoHead or SphereHead checkpoint, is damaged, or asks for what no checkpoint needs.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f"no weights at {path}; give an official .pkl or a folder made by `spinset convert`")
    try:
        return _read_folder(path) if path.is_dir() else _checkpoint(*read_pickle(path), sha256(path))
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a checkpoint") from None
    except (ValueError, MemoryError) as error:
        reason = str(error) or "asks for more memory than there is"
        raise UserError(f"{path}: {shorten(reason, 300)}") from error


def convert(file: str | Path, dest: str | Path) -> Checkpoint:
    """Write an official .pkl as a folder of safetensors and JSON, and return its content.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    checkpoint = load(file)
    save(checkpoint, Path(dest), Path(file).name)
    return checkpoint


def save(checkpoint: Checkpoint, dest: Path, name: str) -> None:
    """Write a checkpoint as a folder that `load` reads; `name` is that of the official file."""
    dest.mkdir(parents=True, exist_ok=True)
    save_tensors(checkpoint.generator.state_dict(), dest / WEIGHTS)
    described = {
        "format": FORMAT,
        "licence": LICENCE,
        "source": {"name": name, "sha256": checkpoint.sha256},
        "weights_sha256": sha256(dest / WEIGHTS),
        **checkpoint.official,
    }
    if (person := checkpoint.person) is not None:
        planes = {} if person.planes is None else {"planes": person.planes}
        save_tensors({"ws": person.ws, **planes}, dest / PERSON)
        described["person_sha256"] = person.sha256
    (dest / CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def _read_folder(folder: Path) -> Checkpoint:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"no {name} in it; a converted checkpoint has {CONFIG} and {WEIGHTS}")
    described = json.loads((folder / CONFIG).read_text())
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise UserError(f"{CONFIG} is not of the format {FORMAT!r}")
    if sha256(folder / WEIGHTS) != described.get("weights_sha256"):
        raise UserError(f"{WEIGHTS} is not the file that {CONFIG} describes; convert the official file again")
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(f"{WEIGHTS} is damaged: {error}") from error
    official = {name: described.get(name) for name in ("family", "init_kwargs", "rendering_kwargs", "attributes")}
    source = described.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("sha256"), str):
        raise UserError(f"{CONFIG} does not say which official file it comes from")
    checkpoint = _checkpoint(official, state, source["sha256"])
    if "person_sha256" not in described:
        return checkpoint
    # The weights are tuned to the person, so they are no longer those of the official file.
    person = _read_person(folder / PERSON, checkpoint.generator, described["person_sha256"])
    return replace(checkpoint, sha256=described["weights_sha256"], person=person)


def _read_person(file: Path, generator: Generator, sha256: Any) -> Person:
    try:
        found = load_file(file)
        person = Person(found["ws"], found.get("planes"))
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{file.name} is missing or damaged; run spinset invert again") from error
    if person.sha256 != sha256:
        raise UserError(f"{file.name} is not the file that {CONFIG} describes; run spinset invert again")
    check_person(person, generator, file.name)
    return person


def check_person(person: Person, generator: Generator, name: str) -> None:
    """Raise UserError unless the styles and planes of a person have the sizes that a generator works with."""
    sizes: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    sizes["ws"] = person.ws, (1, generator.num_ws, generator.config.w_dim)
    if person.planes is not None:
        sizes["planes"] = person.planes, generator.plane_shape
    for key, (tensor, expected) in sizes.items():
        if tuple(tensor.shape) != expected:
            raise UserError(f"{name}: {key} is {tuple(tensor.shape)}; this generator takes {expected}")
        if not tensor.isfinite().all():
            raise UserError(f"{name}: {key} is not finite everywhere")


def _checkpoint(official: dict[str, Any], state: dict[str, Tensor], sha256: str) -> Checkpoint:
    kwargs, rendering, attributes = (official[name] for name in ("init_kwargs", "rendering_kwargs", "attributes"))
    if not (isinstance(kwargs, dict) and isinstance(rendering, dict) and isinstance(attributes, dict)):
        raise UserError("its generator does not say how it was built")
    resolution, axes = attributes.get("neural_rendering_resolution"), attributes.get("plane_axes")
    if not isinstance(resolution, int):
        raise UserError(f"neural_rendering_resolution is {resolution!r}; it must be an integer")
    if official["family"] not in get_args(Family) or axes is None or not _are_axes(axes):
        raise UserError(f"a generator of family {official['family']!r} with plane axes {axes!r} is not known")
    config = GeneratorConfig.from_official(kwargs, rendering, resolution, official["family"], axes)
    for key, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"weights {key} are not all finite")
    return Checkpoint(build(config, state), sha256, official)


def _are_axes(axes: Any) -> bool:
    known = ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    return isinstance(axes, list) and len(axes) == 3 and all(plane in known for plane in axes)
