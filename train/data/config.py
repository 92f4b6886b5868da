"""Settings of the loader and of cached latents."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from jobs.devices import check_device
from jobs.pool import PoolConfig
from manifests.errors import UserError
from manifests.order import TAILS
from train.data.sampling import Anchors, Arc, FrontBack, MultiView, RandomK, Ring, SingleView

FOREVER = 0


@dataclass(frozen=True)
class LoaderConfig:
    """Settings of a loader: the samples, their order, and how they are read."""

    data: Annotated[str, arg(prefix_name=False)]
    """Folder or address of the dataset."""
    recipe: SingleView | MultiView | RandomK | Arc | FrontBack | Anchors | Ring = SingleView()
    """Recipe that picks the views of one sample."""
    selection: Annotated[str, arg(prefix_name=False)] = ""
    """Name of the selection whose views are loaded; all views without it."""
    batch: int = 16
    """Number of samples of a step, over all ranks."""
    members: tuple[str, ...] = ("rgb", "normal")
    """Members to load: rgb, normal, alpha, and any further pictures or arrays (.npy) that the dataset's plan declares."""
    latents: str = ""
    """Folder of the autoencoder whose cached latents are loaded in the place of pixels."""
    resolution: int = 0
    """Side of the pictures in pixels, a multiple of 8; 0 keeps the side of the stored ones."""
    random_background: float = 0.5
    """Fraction of samples, from 0 to 1, that get one random colour behind all their views; the others are white."""
    control: bool = False
    """Load the pictures of another identity from the same views as well."""
    embeddings: str = ""
    """Score table, such as arcface, whose mean embedding of each identity is loaded as well."""
    leave_out: bool = False
    """Leave out identities that the recipe cannot sample; without it they are an error before the first step."""
    seed: int = 0
    epochs: int = FOREVER
    """Number of epochs; 0 has no end."""
    tail: str = "drop"
    """Treatment of the last, incomplete batch of an epoch: drop, pad (with repeated samples, which are marked), or exact (the
    next epoch fills it)."""
    tolerance: int = 0
    """Number of damaged members that are tolerated; the following sample replaces each of them."""
    workers: int = 2
    """Number of processes that read and decode, or of threads with --loader.no-decode; 0 reads in the main process."""
    prefetch: int = 2
    """Number of batches that each worker prepares ahead."""
    start_method: str = "fork"
    """Start method of the worker processes: fork, forkserver or spawn."""
    pin_memory: bool = False
    """Deliver tensors in page-locked memory."""
    as_uint8: bool = False
    """Deliver pictures as bytes from 0 to 255 instead of floats in [-1, 1]."""
    decode: bool = True
    """Decode members; --loader.no-decode delivers their bytes as they are stored."""
    cache: str = ""
    """Local folder that caches the shards of a remote dataset; without it byte ranges are read."""
    cache_gb: float = 100.0
    """Largest size of the cache, in GB."""
    window: int = 0
    """Number of shards within which samples are shuffled, for a cache that cannot hold all shards; 0 shuffles all samples."""
    blend: tuple[str, ...] = ()
    """Folders or addresses of further datasets of the same rig and resolution; each batch comes from one of all of them."""
    blend_weights: tuple[float, ...] = ()
    """Relative number of batches from --data and from each dataset of --loader.blend, in this order; equal without it."""
    sequential: bool = False
    """Stream whole shards, for object storage where random reads are slow. The guarantees are weaker: samples are shuffled
    within a buffer only, and a resumed run skips the remainder of its epoch and begins the next one."""
    buffer: int = 100
    """Number of samples among which --loader.sequential draws the next one, in each worker; 0 keeps the order of the shards."""

    def __post_init__(self) -> None:
        bounds = {
            "seed": 0,
            "batch": 1,
            "resolution": 0,
            "epochs": 0,
            "tolerance": 0,
            "workers": 0,
            "prefetch": 1,
            "window": 0,
            "buffer": 0,
        }
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise UserError(f"{_option(name)} is {getattr(self, name)}; it must be {least} or more")
        choices = {"tail": TAILS, "start_method": ("fork", "forkserver", "spawn")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"{_option(name)} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if not self.members or len(set(self.members)) < len(self.members):
            raise UserError(f"--loader.members are {self.members}; give one or more, each once")
        if "json" in self.members and self.decode:
            raise UserError("--loader.members hold json, which is no array; drop it, or give --loader.no-decode")
        if self.resolution % 8:
            raise UserError(f"--loader.resolution is {self.resolution}; it must be a multiple of 8")
        if not 0 <= self.random_background <= 1:
            raise UserError(f"--loader.random-background is {self.random_background:g}; it must be from 0 to 1")
        if self.cache_gb <= 0:
            raise UserError(f"--loader.cache-gb is {self.cache_gb:g}; it must be more than 0")
        if self.control and not self.decode:
            raise UserError("--loader.control needs pictures that are decoded; drop --loader.no-decode")
        if self.blend_weights and (len(self.blend_weights) != 1 + len(self.blend) or min(self.blend_weights) <= 0):
            raise UserError(
                f"--loader.blend-weights are {self.blend_weights}; give one positive weight for --data and one for each of "
                f"the {len(self.blend)} datasets of --loader.blend"
            )
        if (self.blend or self.sequential) and self.epochs != FOREVER:
            option = "--loader.blend" if self.blend else "--loader.sequential"
            raise UserError(f"--loader.epochs is {self.epochs}; with {option} batches never end, leave it at 0")
        if self.sequential and self.latents:
            raise UserError(
                "--loader.sequential reads pictures out of shards; give --no-latents to encode them on the way"
            )
        for name in ("control", "tolerance", "window", "cache"):
            if self.sequential and getattr(self, name):
                raise UserError(f"{_option(name)} needs random reads; drop it, or --loader.sequential")


@dataclass(frozen=True)
class LatentsConfig:
    """Cache the latents of every view beside the shards; the same command resumes. Shards are read, never written."""

    out: Positional[str]
    """Folder or address of the dataset."""
    vae: str
    """Folder of a diffusers AutoencoderKL as safetensors, such as the vae folder of Stable Diffusion."""
    batch: int = 1
    """Views that are encoded at once, each of them three pictures."""
    device: str = "cpu"
    """Where the autoencoder runs: cpu, cuda, or cuda:N for the GPU of index N."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"--batch is {self.batch}; it must be at least 1")
        check_device(self.device, self.pool.gpus_per_worker)


def _option(name: str) -> str:
    return f"--loader.{name.replace('_', '-')}"
