"""Settings of the commands views, heads and evaluate."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from tyro.conf import OmitArgPrefixes, Positional, arg

from faces.config import FaceConfig, MatteConfig
from jobs.devices import check_device
from manifests.errors import UserError

OUTPUTS = ("images", "sheet", "gif", "mp4", "viewer", "nerfstudio", "colmap", "mesh", "splat")


DEFAULT = ("images", "sheet", "gif", "mp4", "viewer")
PULL = {"released": 6.103515625, "paper": 0.6103515625}
"""How far the model's belief is moved towards the photo at each step, in units of their difference: 2 a / (8 64 64) for a
weight a of 1e5 (released code) or 1e4 (paper) at 64 x 64 cells. Above 1 it goes beyond the photo."""
SAMPLERS = ("euler", "heun", "ddim")
ProtocolName = Literal["spinmeround", "gen3d-face", "diffportrait360"]
Layout = Literal["spinset", "nersemble", "facescape", "renderme360"]


@dataclass(frozen=True)
class DirectionsConfig:
    """From where heads are seen."""

    views: int = 48
    """So many evenly around the head; 48, 88 and 128 fill whole calls of the model."""
    azimuths: tuple[float, ...] = ()
    """These azimuths instead, in degrees from the photo."""
    elevations: tuple[float, ...] = (0.0,)
    """Every azimuth at each of these elevations."""

    def __post_init__(self) -> None:
        if self.views < 1 or not self.elevations:
            raise UserError(f"--views is {self.views} and --elevations {self.elevations}; at least one view is needed")

    @property
    def of_views(self) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
        """Azimuth and elevation of each view."""
        azimuth = np.array(self.azimuths, np.float64) if self.azimuths else np.arange(self.views) * 360.0 / self.views
        elevation = np.repeat(np.array(self.elevations, np.float64), len(azimuth))
        return np.tile(azimuth, len(self.elevations)), elevation


@dataclass(frozen=True)
class SamplerConfig:
    """How views are sampled."""

    steps: int = 50
    scale: float = 0.0
    """Of guidance; the model's own unless told. The paper takes 3, and 3.5 for heads from an identity alone."""
    sampler: str = "euler"
    """Sampler: euler evaluates the network once a step, as released, heun twice; ddim is euler for models of DDPM."""
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast to bf16 over weights in fp32, or fp32 throughout; auto is bf16 where the device has bf16 instructions."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; it must be 1 or more")
        # Compared so that NaN is refused, too.
        if self.scale != 0 and not 1 <= self.scale < math.inf:
            raise UserError(f"--scale is {self.scale:g}; it must be 1 or more, or 0 for the model's own")
        if self.sampler not in SAMPLERS:
            raise UserError(f"--sampler is {self.sampler!r}; it must be one of {', '.join(SAMPLERS)}")


@dataclass(frozen=True)
class PortraitConfig:
    """How photos become inputs of a model."""

    aligned: bool = False
    """Take the picture as it is, a square cut as PanoHead's renders and procedural heads are; no face is looked for."""
    azimuth: float = 0.0
    """Where the camera of an aligned picture stands, in degrees,"""
    elevation: float = 0.0
    """and how high."""
    face: FaceConfig = field(default_factory=FaceConfig)
    matte: MatteConfig = field(default_factory=MatteConfig)

    def __post_init__(self) -> None:
        if not abs(self.elevation) < 90:
            raise UserError(f"--elevation is {self.elevation:g}; it must lie between -90 and 90 degrees")
        if not self.aligned and (self.azimuth or self.elevation):
            raise UserError("--azimuth and --elevation are those of an aligned picture; a photo's are measured")


@dataclass(frozen=True)
class FilesConfig:
    """What is written."""

    outputs: tuple[str, ...] = DEFAULT
    """Any of images, sheet, gif, mp4, viewer (a page to turn the head by hand), nerfstudio, colmap, mesh and splat."""
    fps: float = 24.0
    """Views per second of films."""


@dataclass(frozen=True)
class ViewsConfig:
    """Views all around a person, from one photo or several."""

    model: Positional[str]
    """Folder of a model, or heads64: the embedded one, which knows procedural heads only."""
    photos: Positional[tuple[str, ...]]
    """The first is the front of the turn; one more needs --photo-azimuths."""
    out: str
    """Folder to write."""
    photo_azimuths: tuple[float, ...] = ()
    """How far each further photo is turned from the first, in degrees."""
    directions: Annotated[DirectionsConfig, OmitArgPrefixes] = field(default_factory=DirectionsConfig)
    sampler: Annotated[SamplerConfig, OmitArgPrefixes] = field(default_factory=SamplerConfig)
    portrait: Annotated[PortraitConfig, arg(name="")] = field(default_factory=PortraitConfig)
    allow_embedded: bool = False
    """Let --face.arcface be the embedded recogniser, of procedural heads, for a model that was trained with another."""
    files: Annotated[FilesConfig, OmitArgPrefixes] = field(default_factory=FilesConfig)
    pull: float = PULL["released"]
    """How strongly the photo's normals are tied to it; the paper's variant is 0.61."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if len(self.photo_azimuths) != max(len(self.photos) - 1, 0):
            raise UserError(
                f"{len(self.photos)} photos and {len(self.photo_azimuths)} --photo-azimuths; each but the first has one"
            )
        if len(self.photos) > 3:
            raise UserError(f"{len(self.photos)} photos; a model takes up to 3")


@dataclass(frozen=True)
class HeadsConfig:
    """New people from nothing, from an identity alone, or between two."""

    model: Positional[str]
    """Folder of a model, or heads64: the embedded one, which knows procedural heads only."""
    out: str
    """Folder to write, with one folder for each head."""
    heads: int = 1
    identities: tuple[str, ...] = ()
    """Files of identity embeddings as `views` writes them; heads from nothing without one, between them with two."""
    directions: Annotated[DirectionsConfig, OmitArgPrefixes] = field(default_factory=lambda: DirectionsConfig(8))
    sampler: Annotated[SamplerConfig, OmitArgPrefixes] = field(default_factory=SamplerConfig)
    files: Annotated[FilesConfig, OmitArgPrefixes] = field(default_factory=FilesConfig)
    device: str = "cpu"
    """Where the model runs: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.heads < 1 or len(self.identities) > 2:
            raise UserError(f"--heads is {self.heads} (1 or more), {len(self.identities)} --identities (at most 2)")
        if len(self.identities) == 2 and self.heads < 2:
            raise UserError("--heads is 1; between two identities there are at least 2, themselves")


@dataclass(frozen=True)
class StageConfig:
    """What of a calibrated stage is used."""

    sequence: str = ""
    """Sequence, expression or performance, by the name of its folder or file; one at random of each person unless told."""
    frame: int = -1
    """Number of the moment; one at random unless told."""
    matte: MatteConfig = field(default_factory=MatteConfig)
    """How the background is told where the set has no masks; it stays otherwise."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model as a paper does on people nobody trained on (MODEL --data), or one folder of pictures against
    another (--pair)."""

    model: Positional[str] = ""
    """Folder of a model, or heads64: the embedded one, which knows procedural heads only."""
    data: str = ""
    """Folder or address of a dataset of held-out people, or of a copy of another set (--layout)."""
    pair: tuple[str, ...] = ()
    """Two folders instead of a model: generated pictures, and true ones of the same file names."""
    out: str = "evaluation"
    """Folder to write: results.json, results.md, failures.html and what resuming takes; the same command goes on."""
    protocol: ProtocolName = "spinmeround"
    """How many people, which views, how many steps: as the paper of this name has it."""
    layout: Layout = "spinset"
    """What --data is: a dataset of spinset, or your copy of NeRSemble, FaceScape or RenderMe-360."""
    stage: StageConfig = field(default_factory=StageConfig)
    selection: str = ""
    """Measure only what this selection keeps."""
    identities: int = 0
    """How many people, at random; the protocol's number unless told, all of them if there are fewer."""
    embeddings: str = ""
    """Take who a person is from this score table of the dataset, such as arcface; from the input view unless told."""
    nearest: str = ""
    """Training set of the model: adds the baseline that shows its head with the most similar embedding (from the table of
    --embeddings, or arcface)."""
    recogniser: str = ""
    """ArcFace .onnx for identities and their metrics; embedded is the one that knows procedural heads only."""
    allow_embedded: bool = False
    """Let the embedded recogniser and CLIP judge people who are not procedural heads; the results record it."""
    detector: str = ""
    """SCRFD .onnx that finds faces; without it the known cameras say where a face must be."""
    reid_limit: float = 0.0
    """Distance of embeddings below which the recogniser sees one person; re-identification is not counted at 0."""
    clip: str = ""
    """CLIP for the similarity of pictures, as open_clip names a folder (local-dir:FOLDER)."""
    weights: str = ""
    """Folder of the networks of LPIPS, DISTS and FID; where torch keeps its downloads unless told."""
    steps: int = 0
    """Sampling steps; the protocol's unless told."""
    scale: float = 0.0
    """Guidance; the protocol's unless told."""
    stages: int = 1
    """1 makes all views from the input; 2 makes seven anchors first, as `spinset views` does."""
    input_normals: Literal["own", "stored"] = "own"
    """Normals of the input: in-painted by the model as for a photo, or the stored ones, which a photo does not have."""
    seed: int = 0
    """Of people, views and noise."""
    device: str = "cpu"
    """Where the model and the metrics run: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if len(self.pair) not in (0, 2):
            raise UserError(f"--pair has {len(self.pair)} folders; it takes two, of generated and of true pictures")
        if self.pair and (self.model or self.data):
            raise UserError("--pair compares two folders and takes no model and no --data")
        if not self.pair and not (self.model and self.data):
            raise UserError("give a model and --data, or two folders with --pair GENERATED TRUTH")
        if self.stages not in (1, 2):
            raise UserError(f"--stages is {self.stages}; 1 makes all views from the input, 2 makes anchors first")
        if self.identities < 0 or self.steps < 0 or self.reid_limit < 0 or (self.scale and self.scale < 1):
            raise UserError("--identities, --steps and --reid-limit are 0 or more, --scale is 1 or more")
        if self.layout != "spinset" and (self.selection or self.embeddings):
            raise UserError(f"--selection and --embeddings are of datasets of spinset; --layout is {self.layout}")
        if self.layout != "spinset" and self.input_normals == "stored":
            raise UserError(f"--input-normals is stored, and {self.layout} has no normals; give own")
