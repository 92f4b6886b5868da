"""Settings of the commands that make heads: generate, plan, repair and retry."""

import re
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional

from datagen.rigs import find_rig
from jobs.devices import check_device
from jobs.pool import PoolConfig
from manifests.draws import MAX_SEED
from manifests.errors import UserError, check_ranges
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
    """Storage of colour images; alpha and normals are always PNG."""

    format: str = "jpg"
    """Format of colour images: jpg, png (lossless) or webp (lossless)."""
    quality: int = 95
    """Quality of jpg, from 1 to 100; chroma is never subsampled."""

    def __post_init__(self) -> None:
        if self.format not in RGB_FORMATS:
            raise UserError(f"--image.format is {self.format!r}; it must be one of {', '.join(RGB_FORMATS)}")
        check_ranges(self, "--image.", quality=(1, 100))

    @property
    def members(self) -> dict[str, str]:
        """The file extension of each member."""
        return {"rgb": f"rgb.{self.format}", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}


@dataclass(frozen=True)
class MeshConfig:
    """Extraction of the surface from the density of a head."""

    resolution: int = 256
    """Number of cells along each side of the cube: 64, 128, 256 or 512."""
    method: str = "lewiner"
    """Marching cubes of scikit-image (lewiner, topologically correct and about twice as fast) or of PyMCubes (pymcubes)."""
    dust: float = 1e-3
    """Share of all faces below which a component is removed."""

    def __post_init__(self) -> None:
        if self.resolution not in (64, 128, 256, 512):
            raise UserError(f"--mesh.resolution is {self.resolution}; it must be 64, 128, 256 or 512")
        if self.method not in METHODS:
            raise UserError(f"--mesh.method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if self.method == "pymcubes" and find_spec("mcubes") is None:
            raise UserError(
                "--mesh.method is pymcubes, which needs PyMCubes: pip install 'spinset[pymcubes]' (on Python 3.13 it is "
                "compiled, which takes a C++ compiler), or give lewiner"
            )
        check_ranges(self, "--mesh.", dust=(0, 0.999))


@dataclass(frozen=True)
class ProceduralConfig:
    """Defects that are planted in procedural heads."""

    defect_rate: float = 0.0
    """Probability with which each kind of defect is planted in a head, independently of the other kinds."""
    defects: tuple[str, ...] = DEFECT_KINDS
    """Kinds of defects that are planted."""

    def __post_init__(self) -> None:
        check_ranges(self, defect_rate=(0, 1))
        unknown = [kind for kind in self.defects if kind not in DEFECT_KINDS]
        if unknown:
            raise UserError(f"--defects holds {', '.join(unknown)}; the kinds are {', '.join(DEFECT_KINDS)}")


@dataclass(frozen=True)
class PanoHeadConfig:
    """Checkpoint and sampling of PanoHead and SphereHead."""

    weights: str = ""
    """Path of an official .pkl, or of a folder that `spinset convert` made from one."""
    psi: float = 0.7
    """Truncation psi: 1 gives the full variety, smaller values give heads closer to the average."""
    cutoff: int | None = 14
    """Number of layers that are truncated, of the 14 of PanoHead; None truncates all."""
    precision: str = "exact"
    """Precision: exact computes in single precision, fast runs super-resolution in half precision."""
    background: str = "white"
    """Background: own (as the network renders it), white, black, grey, or a colour as #rrggbb."""
    neural_resolution: int | None = None
    """Resolution of the volume rendering in pixels; None takes the resolution of the checkpoint."""
    jitter_seed: int | None = None
    """Seed of the random offsets of samples along rays, as in the official code; None places samples evenly."""

    def __post_init__(self) -> None:
        check_ranges(self, psi=(0, 2), cutoff=(0, 100), neural_resolution=(8, 512), jitter_seed=(0, MAX_SEED))
        if self.precision not in ("exact", "fast"):
            raise UserError(f"--precision is {self.precision!r}; it must be exact or fast")
        _ = self.colour

    @property
    def colour(self) -> tuple[float, float, float] | None:
        """The background colour; None for the network's own background."""
        if self.background == "own":
            return None
        code = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}.get(self.background, self.background)
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", code):
            raise UserError(f"--background is {self.background!r}; it must be own, white, black, grey or #rrggbb")
        red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue


@dataclass(frozen=True)
class SourceConfig:
    """Source of the heads, and the settings of each source."""

    source: str = "procedural"
    """Name of the source: procedural, which needs no weights, or panohead or spherehead, which need --weights."""
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)
    panohead: PanoHeadConfig = field(default_factory=PanoHeadConfig)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"unknown source {self.source!r}; there are {', '.join(SOURCES)}")

    def absolute(self) -> "SourceConfig":
        """The same config with absolute paths, which hold in the working folder of any worker."""
        return replace(self, panohead=replace(self.panohead, weights=absolute(self.panohead.weights)))

    def open(self, device: str) -> Any:
        """The `HeadSource` with its weights loaded on a device; raises UserError or MissingFile for files it cannot use."""
        return import_module(SOURCES[self.source]).open_source(self, device)


@dataclass(frozen=True)
class GenerateConfig:
    """Make a dataset; the same command on the same folder resumes it."""

    out: Positional[str]
    """Folder of the dataset, or an fsspec address such as s3://bucket/heads."""
    source: Annotated[SourceConfig, OmitArgPrefixes] = field(default_factory=SourceConfig)
    identities: int = 100
    """Number of heads, up to 10 million; with a larger number than before, a dataset grows."""
    seed: int = 0
    """Seed of the first head; identity i is the head of seed + i."""
    rig: str = "spinmeround-125"
    """Name of the camera rig: spinmeround-125, gen3dface-48, gen3dface-48-el40, diffportrait360-72, diffportrait3d-24,
    facelift-6, facelift-32, orbit-N or scatter-N."""
    grid: bool = False
    """View every identity from exactly the directions of the rig, without jitter."""
    resolution: int = 512
    """Width and height of every image in pixels, a multiple of 8 up to 4096."""
    identities_per_shard: int = 16
    """Number of identities in a shard, which is the unit of work and what a crash may cost each worker."""
    image: ImageConfig = field(default_factory=ImageConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    save_meshes: bool = False
    """Save the mesh of each identity as meshes/NNNNNNN.ply, too."""
    device: str = "cpu"
    """Device of the head source: cpu, cuda, or cuda:N for the GPU of index N."""
    max_failed: int = 0
    """Largest number of failed identities that does not end the command with exit code 3."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("identities", "identities_per_shard"), (1, MAX_IDENTITIES))
        check_ranges(self, **counts, seed=(0, MAX_SEED), max_failed=(0, MAX_IDENTITIES))
        if not 8 <= self.resolution <= MAX_RESOLUTION or self.resolution % 8:
            raise UserError(f"--resolution is {self.resolution}; it must be a multiple of 8 from 8 to {MAX_RESOLUTION}")
        check_device(self.device, self.pool.gpus_per_worker)
        find_rig(self.rig)


@dataclass(frozen=True)
class RemakeConfig:
    """A dataset of which shards are made again."""

    out: Positional[str]
    """Folder or address of the dataset."""
    weights: str = ""
    """Weights of the head source, if it has any, as `spinset generate` was given them."""
    device: str = "cpu"
    """Device of the head source, of the same kind as in `spinset generate`: cpu, cuda, or cuda:N for the GPU of index N."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if self.pool.part:
            raise UserError("repair and retry take no --part; one command replaces all shards")
        check_device(self.device, self.pool.gpus_per_worker)
