"""Settings of the commands views, heads and evaluate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
from tyro.conf import OmitArgPrefixes, Positional, arg

from faces.config import FaceConfig, MatteConfig
from jobs.devices import check_device
from manifests.draws import MAX_SEED
from manifests.errors import UserError, check_ranges

OUTPUTS = ("images", "sheet", "gif", "mp4", "viewer", "nerfstudio", "colmap", "mesh", "splat")
DEFAULT = ("images", "sheet", "gif", "mp4", "viewer")
INPAINT_STRENGTH = {"released": 6.103515625, "paper": 0.6103515625}
"""Share of the difference between the denoised image and the photo that is removed in each step of in-painting.

It is 2 a / (8 64 64) for a weight a of 1e5 (released code) or 1e4 (paper) at 64 x 64 latents. Above 1, the step
goes beyond the photo."""
SAMPLERS = ("euler", "heun", "ddim")
AZIMUTH, ELEVATION = (-360, 360), (-89.9, 89.9)
"""Bounds of angles in degrees; views from straight above or below have no upright direction."""
STEPS, SCALE = (1, 1000), (1, 100)
"""Bounds of the number of sampling steps and of the guidance scale."""
ProtocolName = Literal["spinmeround", "gen3d-face", "diffportrait360"]
Layout = Literal["spinset", "nersemble", "facescape", "renderme360"]


@dataclass(frozen=True)
class DirectionsConfig:
    """Directions from which heads are viewed."""

    views: int = 0
    """Number of views, evenly spaced around the head; 0 takes those of the model, which are 48 for SpinMeRound."""
    azimuths: tuple[float, ...] = ()
    """Azimuths of the views in degrees, from the photo or from the front, instead of --views."""
    elevations: tuple[float, ...] = (0.0,)
    """Elevations in degrees; every azimuth is viewed at each of them."""
    angles: Literal["orbit", "spinmeround"] = "orbit"
    """Meaning of the angles: orbit takes azimuths and elevations of the camera; spinmeround takes yaw and pitch of the head as
    SpinMeRound's released code does, where pitch equals the elevation at yaw 0 and rolls the view at yaw 90."""

    def __post_init__(self) -> None:
        check_ranges(self, views=(0, 10_000), azimuths=AZIMUTH, elevations=ELEVATION)
        if self.angles not in ("orbit", "spinmeround"):
            raise UserError(f"--angles is {self.angles!r}; it must be orbit or spinmeround")
        if not self.elevations:
            raise UserError("--elevations is empty; give one elevation or more")

    def of_views(self, default: Sequence[float]) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
        """Azimuth and elevation of each view, with the azimuths that a model makes by default."""
        ring = [360.0 * view / self.views for view in range(self.views)]
        azimuth = np.array(self.azimuths or ring or default, np.float64)
        elevation = np.repeat(np.array(self.elevations, np.float64), len(azimuth))
        return np.tile(azimuth, len(self.elevations)), elevation


@dataclass(frozen=True)
class SamplerConfig:
    """Sampling of views."""

    steps: int = 50
    """Number of sampling steps, from 1 to 1000."""
    scale: float = 0.0
    """Guidance scale, 1 or more; 0 takes that of the model. The paper uses 3, and 3.5 for heads from an identity alone."""
    sampler: str = "euler"
    """Sampler: euler evaluates the network once a step, as released, heun twice, and ddim once, for models of DDPM."""
    eta: float | None = None
    """Share of new noise in each step of euler or ddim, from 0 to 1; by default that of the model (0.5 for DiffPortrait)."""
    overlap: int = 0
    """Number of views that neighbouring windows share, for models that sample in windows; their estimates are averaged."""
    seed: int = 0
    """Seed of the noise."""
    offload: bool = False
    """Keep the weights in main memory and copy each layer to the GPU while it computes: the least memory, and slower."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the network: bf16 is autocast over fp32 weights; auto takes bf16 where the device computes in it."""

    def __post_init__(self) -> None:
        optional = {"scale": SCALE} if self.scale else {}
        optional |= {"eta": (0, 1)} if self.eta is not None else {}
        check_ranges(self, steps=STEPS, seed=(0, MAX_SEED), overlap=(0, 10_000), **optional)
        if self.sampler not in SAMPLERS:
            raise UserError(f"--sampler is {self.sampler!r}; it must be one of {', '.join(SAMPLERS)}")
        if self.eta and self.sampler == "heun":
            raise UserError(f"--eta is {self.eta:g}, and --sampler heun adds no noise; give euler or ddim")


@dataclass(frozen=True)
class PortraitConfig:
    """Preparation of photos as inputs of a model."""

    aligned: bool = False
    """Use the picture as it is, a square framed as procedural heads and PanoHead's renders are; no face is detected."""
    azimuth: float = 0.0
    """Azimuth in degrees of the camera of an aligned picture."""
    elevation: float = 0.0
    """Elevation in degrees of the camera of an aligned picture."""
    face: FaceConfig = field(default_factory=FaceConfig)
    matte: MatteConfig = field(default_factory=MatteConfig)

    def __post_init__(self) -> None:
        check_ranges(self, azimuth=AZIMUTH, elevation=ELEVATION)
        if not self.aligned and (self.azimuth or self.elevation):
            raise UserError("--azimuth and --elevation are those of an aligned picture; a photo's are measured")


@dataclass(frozen=True)
class FilesConfig:
    """Files that are written."""

    outputs: tuple[str, ...] = DEFAULT
    """Outputs: images, sheet, gif, mp4, viewer (a page in which the head turns), nerfstudio, colmap, mesh and splat."""
    fps: float = 24.0
    """Views per second of films, from 1 to 50, which is the fastest GIF."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.outputs if name not in OUTPUTS]:
            raise UserError(f"there is no output {unknown[0]!r}; there are {', '.join(OUTPUTS)}")
        check_ranges(self, fps=(1, 50))


@dataclass(frozen=True)
class ViewsConfig:
    """Make views all around a person, from one photo or several."""

    model: Positional[str]
    """Folder of a model, or heads64 for the embedded model, trained on procedural heads only."""
    photos: Positional[tuple[str, ...]]
    """Photos of the person; the first defines the front, and each further one needs its --photo-azimuths."""
    out: str
    """Folder or address to write to."""
    photo_azimuths: tuple[float, ...] = ()
    """Azimuth in degrees of each further photo relative to the first."""
    directions: Annotated[DirectionsConfig, OmitArgPrefixes] = field(default_factory=DirectionsConfig)
    sampler: Annotated[SamplerConfig, OmitArgPrefixes] = field(default_factory=SamplerConfig)
    portrait: Annotated[PortraitConfig, arg(name="")] = field(default_factory=PortraitConfig)
    control: str = ""
    """Dataset or folder of pictures of a stranger from the directions of the views, for models that need them."""
    back: str = ""
    """Folder of a model that makes the back from the first photo, as a further reference for --model."""
    proxies: str = ""
    """Folder of coarse pictures, one for each view in order of names, whose noised latents sampling starts from."""
    allow_embedded: bool = False
    """Allow --face.arcface to be the embedded recogniser of procedural heads for a model that was trained with another."""
    files: Annotated[FilesConfig, OmitArgPrefixes] = field(default_factory=FilesConfig)
    inpaint_strength: float = INPAINT_STRENGTH["released"]
    """Strength with which the photo guides the in-painting of its normals: 6.1 in the released code, 0.61 in the paper."""
    device: str = "cpu"
    """Device of the model: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        check_ranges(self, photo_azimuths=AZIMUTH, inpaint_strength=(0, 100))
        if len(self.photo_azimuths) != max(len(self.photos) - 1, 0):
            raise UserError(
                f"{len(self.photos)} photos and {len(self.photo_azimuths)} --photo-azimuths; each but the first has one"
            )
        if len(self.photos) > 3:
            raise UserError(f"{len(self.photos)} photos; a model takes up to 3")


@dataclass(frozen=True)
class HeadsConfig:
    """Make new people: without any input, from an identity alone, or between two identities."""

    model: Positional[str]
    """Folder of a model, or heads64 for the embedded model, trained on procedural heads only."""
    out: str
    """Folder or address to write to, with one folder for each head."""
    heads: int = 1
    """Number of heads."""
    identities: tuple[str, ...] = ()
    """Files of one or two identity embeddings, as `spinset views` writes them; two are interpolated."""
    directions: Annotated[DirectionsConfig, OmitArgPrefixes] = field(default_factory=lambda: DirectionsConfig(8))
    sampler: Annotated[SamplerConfig, OmitArgPrefixes] = field(default_factory=SamplerConfig)
    files: Annotated[FilesConfig, OmitArgPrefixes] = field(default_factory=FilesConfig)
    device: str = "cpu"
    """Device of the model: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        check_ranges(self, heads=(1, 1_000_000))
        if len(self.identities) > 2:
            raise UserError(f"{len(self.identities)} --identities; give at most 2")
        if len(self.identities) == 2 and self.heads < 2:
            raise UserError("--heads is 1; between two identities there are at least 2, themselves")


@dataclass(frozen=True)
class StageConfig:
    """Choice of moments of a calibrated capture stage (--layout)."""

    sequence: str = ""
    """Name of the sequence, expression or performance; by default one is drawn at random for each person."""
    frame: int = -1
    """Number of the frame; -1 draws one at random."""
    matte: MatteConfig = field(default_factory=MatteConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "--stage.", frame=(-1, 1_000_000_000))


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model on held-out people as a paper does (MODEL --data), or one folder of pictures against another (--pair)."""

    model: Positional[str] = ""
    """Folder of a model, or heads64 for the embedded model, trained on procedural heads only."""
    data: str = ""
    """Folder or address of a dataset of held-out people, or the folder of another set (--layout)."""
    pair: tuple[str, ...] = ()
    """Two folders that are compared instead of a model: generated pictures, and true ones with the same file names."""
    out: str = "evaluation"
    """Folder of results.json, results.md, failures.html and the state for resuming; the same command resumes."""
    protocol: ProtocolName = "spinmeround"
    """Paper whose protocol sets the number of people, the views and the sampling steps."""
    layout: Layout = "spinset"
    """Layout of --data: a spinset dataset, or (experimental) a copy of NeRSemble, FaceScape or RenderMe-360."""
    stage: StageConfig = field(default_factory=StageConfig)
    selection: str = ""
    """Name of a selection; only the views that it keeps are measured."""
    identities: int = 0
    """Number of people, drawn at random; 0 takes the number of the protocol, and at most all people are measured."""
    embeddings: str = ""
    """Score table, such as arcface, with the identity embeddings; by default they are measured in the input view."""
    nearest: str = ""
    """Training set of the model, which adds a baseline: its head with the most similar embedding in the table --embeddings."""
    recogniser: str = ""
    """Path of an ArcFace .onnx for identities and their metrics; embedded names the one for procedural heads."""
    allow_embedded: bool = False
    """Allow the embedded recogniser and CLIP to judge people who are not procedural heads; the results record it."""
    detector: str = ""
    """Path of an SCRFD .onnx detector of faces; without it faces are located from the known cameras."""
    reid_limit: float = 0.0
    """Distance of embeddings below which two faces are one person; 0 leaves re-identification out."""
    clip: str = ""
    """Folder of a CLIP for the similarity of pictures, as open_clip names it (local-dir:FOLDER)."""
    weights: str = ""
    """Folder of the networks of LPIPS, DISTS and FID; by default the cache of torch."""
    steps: int = 0
    """Number of sampling steps; 0 takes that of the protocol."""
    scale: float = 0.0
    """Guidance scale, 1 or more; 0 takes that of the protocol."""
    control: str = ""
    """Dataset of strangers with the rig of --data, whose pictures say where the cameras are, for models that need them."""
    cross_control: bool = False
    """Make the views with the pictures of a second stranger as well, and measure how much they change."""
    back: str = ""
    """Folder of a model that makes the back from the input, as a further reference for the model."""
    overlap: int = 0
    """Number of views that neighbouring windows share, for models that sample in windows."""
    stages: int = 2
    """Stages of sampling: 2 samples seven anchors first, as `spinset views` does; 1 samples all views from the input."""
    input_normals: Literal["own", "stored"] = "own"
    """Normals of the input: own are in-painted by the model as for a photo, stored are those of the dataset."""
    seed: int = 0
    """Seed of the choice of people and views, and of the noise."""
    max_failed: int = 0
    """Largest number of people that may fail, because they cannot be read or placed, without exit code 3."""
    device: str = "cpu"
    """Device of the model and the metrics: cpu, cuda, or cuda:N for the GPU of index N."""

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
        optional = {"steps": STEPS, "scale": SCALE}
        given = {name: bounds for name, bounds in optional.items() if getattr(self, name)}
        counts = dict.fromkeys(("identities", "max_failed", "overlap"), (0, 1_000_000_000))
        check_ranges(self, **given, **counts, seed=(0, MAX_SEED), reid_limit=(0, 4))
        if self.cross_control and not self.control:
            raise UserError("--cross-control compares two strangers of --control; name their dataset")
        if self.layout != "spinset" and (self.selection or self.embeddings):
            raise UserError(f"--selection and --embeddings are of datasets of spinset; --layout is {self.layout}")
        if self.layout != "spinset" and self.input_normals == "stored":
            raise UserError(f"--input-normals is stored, and {self.layout} has no normals; give own")
