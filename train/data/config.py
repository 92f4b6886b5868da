"""Settings of the loader and of cached latents."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from jobs.devices import check_device
from jobs.pool import PoolConfig
from manifests.draws import MAX_SEED
from manifests.errors import UserError, check_ranges
from manifests.order import TAILS
from train.data.sampling import Anchors, Arc, FrontBack, MultiView, Portraits, RandomK, Ring, SingleView

FOREVER = 0


@dataclass(frozen=True)
class LoaderConfig:
    """Loading of a dataset: the samples, their order, and the processes that read them."""

    data: Annotated[str, arg(prefix_name=False)]
    """Folder or address of the dataset."""
    recipe: SingleView | MultiView | RandomK | Arc | FrontBack | Portraits | Anchors | Ring = SingleView()
    """Recipe of a sample: the number of views, and which of them are given."""
    selection: Annotated[str, arg(prefix_name=False)] = ""
    """Name of a selection whose heads and views are loaded; all are loaded without one."""
    batch: int = 16
    """Number of samples of a step, of all ranks together."""
    members: tuple[str, ...] = ("rgb", "normal")
    """Members of each view that are loaded: rgb, normal, alpha, or further pictures and arrays that the dataset declares."""
    latents: str = ""
    """Folder of an autoencoder whose cached latents are loaded instead of pixels."""
    resolution: int = 0
    """Width and height of pictures in pixels, a multiple of 8; 0 keeps the stored size."""
    random_background: float = 0.5
    """Probability of one random background colour for all views of a sample; otherwise the background is white."""
    control: bool = False
    """Add the pictures of another identity from the same directions."""
    control_data: str = ""
    """Dataset of the same rig whose heads control pictures show; by default they show other heads of --data."""
    embeddings: str = ""
    """Score table, such as arcface, whose mean embedding of each identity is added; none is added without it."""
    leave_out: bool = False
    """Leave out and list the identities that the recipe cannot sample, instead of refusing to start."""
    seed: int = 0
    """Seed of the order of samples and of their random choices."""
    epochs: int = FOREVER
    """Number of epochs; 0 does not end."""
    tail: str = "drop"
    """Last short batch of an epoch: drop omits it, pad fills it with repeated samples, exact with samples of the next epoch."""
    tolerance: int = 0
    """Number of members that may fail to decode before the run stops; the sample after a damaged one takes its place."""
    workers: int = 2
    """Number of processes (threads if nothing is decoded) that read and decode; 0 reads in the process of the rank."""
    prefetch: int = 2
    """Number of batches that each worker prepares ahead."""
    start_method: str = "fork"
    """Start method of the worker processes: fork, forkserver or spawn."""
    pin_memory: bool = False
    """Deliver tensors in page-locked memory."""
    as_uint8: bool = False
    """Deliver pictures as bytes from 0 to 255 instead of floats in [-1, 1]."""
    decode: bool = True
    """Decode members to pixels, instead of delivering them as they are stored."""
    cache: str = ""
    """Local folder in which shards of a remote dataset are cached; without it, byte ranges are read."""
    cache_gb: float = 100.0
    """Largest size of the cache in GB."""
    window: int = 0
    """Number of shards among which samples are shuffled, for a cache that cannot hold all; 0 shuffles everything."""
    blend: tuple[str, ...] = ()
    """Folders or addresses of further datasets of the same rig and resolution; each batch comes from one of all of them."""
    blend_weights: tuple[float, ...] = ()
    """Relative number of batches from --data and from each dataset of --loader.blend, in this order; equal by default."""
    sequential: bool = False
    """Stream whole shards, for object storage; the order is shuffled in a buffer only, and a resume begins a new epoch."""
    buffer: int = 100
    """Number of samples among which --loader.sequential draws the next one, in each worker; 0 keeps the order of the shards."""

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("epochs", "tolerance", "window", "buffer"), (0, 1_000_000_000))
        shares = {"random_background": (0, 1), "blend_weights": (1e-6, 1e6)}
        check_ranges(self, "--loader.", **counts, **shares, seed=(0, MAX_SEED), batch=(1, 10_000_000))
        check_ranges(
            self, "--loader.", resolution=(0, 4096), workers=(0, 1024), prefetch=(1, 10**9), cache_gb=(1e-6, 1e6)
        )
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
        if self.control and not self.decode:
            raise UserError("--loader.control needs pictures that are decoded; drop --loader.no-decode")
        if self.blend_weights and len(self.blend_weights) != 1 + len(self.blend):
            raise UserError(
                f"--loader.blend-weights are {self.blend_weights}; give one weight for --data and one for each of "
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
    """Cache the latents of every view next to the shards; the same command resumes. Shards are read, never written."""

    out: Positional[str]
    """Folder or address of the dataset."""
    vae: str
    """Folder of a diffusers AutoencoderKL as safetensors, such as the vae folder of Stable Diffusion."""
    batch: int = 1
    """Number of views, each with three pictures, that are encoded at once."""
    device: str = "cpu"
    """Device of the autoencoder: cpu, cuda, or cuda:N for the GPU of index N."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        check_ranges(self, batch=(1, 100_000))
        check_device(self.device, self.pool.gpus_per_worker)


def _option(name: str) -> str:
    return f"--loader.{name.replace('_', '-')}"
