"""Settings of the commands that make heads: generate, plan and repair."""

import re
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional

from datagen.rigs import find_rig
from jobs.devices import check_device
from jobs.pool import PoolConfig
from manifests.errors import UserError
from weights.files import absolute

RGB_FORMATS = ("jpg", "png", "webp")
METHODS = ("lewiner", "pymcubes")
MAX_IDENTITIES = 10_000_000
"""Keys and names of files have seven digits for the identity."""


MAX_RESOLUTION = 4096
"""A batch of views of this size takes some GB of memory."""
DEFECT_KINDS = ("janus", "identity_drift", "floater", "hole", "haze", "truncated")
SOURCES = {
    "procedural": "datagen.sources.procedural.source",
    "panohead": "datagen.sources.panohead.head",
    "spherehead": "datagen.sources.panohead.head",
}
"""The head sources by name, each with the module whose `open_source` opens it."""


@dataclass(frozen=True)
class ImageConfig:
    """How colour images are stored; alpha and normals are always PNG."""

    format: str = "jpg"
    """jpg, png (lossless) or webp (lossless)."""
    quality: int = 95
    """Of jpg, 1 to 100; chroma is never subsampled."""

    def __post_init__(self) -> None:
        if self.format not in RGB_FORMATS:
            raise UserError(f"image format is {self.format!r}; it must be one of {', '.join(RGB_FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"image quality is {self.quality}; it must be from 1 to 100")

    @property
    def members(self) -> dict[str, str]:
        """The file extension of each member."""
        return {"rgb": f"rgb.{self.format}", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}


@dataclass(frozen=True)
class MeshConfig:
    """How a surface is extracted."""

    resolution: int = 256
    """Cells along each side of the cube: 64, 128, 256, 512."""
    method: str = "lewiner"
    """Marching cubes by scikit-image (lewiner: topologically correct, about twice as fast) or by PyMCubes (pymcubes)."""
    dust: float = 1e-3
    """Components with a smaller share of the faces than this are removed."""

    def __post_init__(self) -> None:
        if self.resolution not in (64, 128, 256, 512):
            raise UserError(f"mesh resolution is {self.resolution}; it must be 64, 128, 256 or 512")
        if self.method not in METHODS:
            raise UserError(f"mesh method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if self.method == "pymcubes" and find_spec("mcubes") is None:
            raise UserError(
                "mesh method is pymcubes, which needs PyMCubes: pip install 'spinset[pymcubes]' (on Python 3.13 it is "
                "compiled, which takes a C++ compiler), or give lewiner"
            )
        if not 0 <= self.dust < 1:
            raise UserError(f"mesh dust is {self.dust}; it must be in [0, 1)")


@dataclass(frozen=True)
class ProceduralConfig:
    """What goes wrong on purpose: each kind of defect is planted independently in this share of the heads."""

    defect_rate: float = 0.0
    defects: tuple[str, ...] = DEFECT_KINDS

    def __post_init__(self) -> None:
        if not 0 <= self.defect_rate <= 1:
            raise UserError(f"defect_rate is {self.defect_rate}; it is a probability, between 0 and 1")
        unknown = [kind for kind in self.defects if kind not in DEFECT_KINDS]
        if unknown:
            raise UserError(f"defects holds {', '.join(unknown)}; the kinds are {', '.join(DEFECT_KINDS)}")


@dataclass(frozen=True)
class PanoHeadConfig:
    """How heads are drawn from a checkpoint, and how they are seen."""

    weights: str = ""
    """An official .pkl, or a folder made from one by `spinset convert`."""
    psi: float = 0.7
    """Truncation: 1 is the full variety, less is closer to the average head."""
    cutoff: int | None = 14
    """How many of the layers are truncated; None for all (PanoHead has 14)."""
    precision: str = "exact"
    """exact: single precision. fast: super-resolution in half precision."""
    background: str = "white"
    """own (as the network renders it), white, black, grey, or a colour as #rrggbb."""
    neural_resolution: int | None = None
    """Resolution of the volume rendering; None for the checkpoint's own."""
    jitter_seed: int | None = None
    """Samples along rays are drawn at random, as in the official code, from this seed; None places them evenly."""

    def __post_init__(self) -> None:
        if not 0 <= self.psi <= 2:
            raise UserError(f"psi is {self.psi}; it must be from 0 to 2")
        if self.cutoff is not None and self.cutoff < 0:
            raise UserError(f"cutoff is {self.cutoff}; it must be at least 0, or None for all layers")
        if self.precision not in ("exact", "fast"):
            raise UserError(f"precision is {self.precision!r}; it must be exact or fast")
        if self.neural_resolution is not None and not 8 <= self.neural_resolution <= 512:
            raise UserError(f"neural_resolution is {self.neural_resolution}; it must be from 8 to 512")
        if self.jitter_seed is not None and self.jitter_seed < 0:
            raise UserError(f"jitter_seed is {self.jitter_seed}; it must be at least 0")
        _ = self.colour

    @property
    def colour(self) -> tuple[float, float, float] | None:
        """The background colour; None for the network's own background."""
        if self.background == "own":
            return None
        code = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}.get(self.background, self.background)
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", code):
            raise UserError(f"background is {self.background!r}; it must be own, white, black, grey or #rrggbb")
        red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue


@dataclass(frozen=True)
class SourceConfig:
    """Which source makes the heads, and the settings of each."""

    source: str = "procedural"
    """procedural (embedded, needs nothing), panohead or spherehead (need --weights)."""
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)
    panohead: PanoHeadConfig = field(default_factory=PanoHeadConfig)
    """Of panohead and spherehead alike."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"unknown source {self.source!r}; there are {', '.join(SOURCES)}")

    def absolute(self) -> "SourceConfig":
        """The same, with paths that hold wherever a worker runs."""
        return replace(self, panohead=replace(self.panohead, weights=absolute(self.panohead.weights)))

    def open(self, device: str) -> Any:
        """The `HeadSource` with its weights loaded on a device; raises UserError or MissingFile for files it cannot use."""
        return import_module(SOURCES[self.source]).open_source(self, device)


@dataclass(frozen=True)
class GenerateConfig:
    """Make a dataset; the same command on the same folder resumes it."""

    out: Positional[str]
    """Folder (or fsspec address such as s3://bucket/heads) of the dataset."""
    source: Annotated[SourceConfig, OmitArgPrefixes] = field(default_factory=SourceConfig)
    identities: int = 100
    """How many heads to make, up to 10 million."""
    seed: int = 0
    """Identity i is the head of seed + i."""
    rig: str = "spinmeround-125"
    """spinmeround-125, gen3dface-48, gen3dface-48-el40, diffportrait360-72, diffportrait3d-24, facelift-6, facelift-32,
    orbit-N or scatter-N."""
    grid: bool = False
    """See every identity from exactly the rig's directions, without jitter."""
    resolution: int = 512
    """Width and height of every image in pixels, a multiple of 8 up to 4096."""
    identities_per_shard: int = 16
    """The unit of work, and what a crash may cost each worker."""
    image: ImageConfig = field(default_factory=ImageConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    save_meshes: bool = False
    """Also save the mesh of each identity as meshes/NNNNNNN.ply."""
    device: str = "cpu"
    """Where the head source runs: cpu, cuda, or cuda:N for the GPU of index N."""
    retry_failed: bool = False
    """Make the shards anew in which identities failed."""
    max_failed: int = 0
    """End with exit code 3 when more identities than this failed."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        for name, least in (("identities", 1), ("seed", 0), ("identities_per_shard", 1), ("max_failed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
            if name == "identities" and self.identities > MAX_IDENTITIES:
                raise UserError(f"--identities is {self.identities}; it must be at most {MAX_IDENTITIES}")
        if not 8 <= self.resolution <= MAX_RESOLUTION or self.resolution % 8:
            raise UserError(f"--resolution is {self.resolution}; it must be a multiple of 8 from 8 to {MAX_RESOLUTION}")
        check_device(self.device, self.pool.gpus_per_worker)
        find_rig(self.rig)


@dataclass(frozen=True)
class RepairConfig:
    """Make damaged shards anew, as the dataset's plan says, and prove them equal to what was lost."""

    out: Positional[str]
    """Folder or address of the dataset."""
    weights: str = ""
    """The generator's weights, if it has any, as `spinset generate` was given them."""
    device: str = "cpu"
    """Where the head source runs, the same kind as when the dataset was made: cpu, cuda, or cuda:N for the GPU of index N."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        check_device(self.device, self.pool.gpus_per_worker)
