"""Settings of a training run; free of torch."""

import json
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from jobs.devices import check_device
from manifests.draws import MAX_SEED
from manifests.errors import MissingFile, UserError, check_ranges
from train.data.config import FOREVER, LoaderConfig
from train.diffusion.config import Objective, Precision
from train.networks.config import WEIGHTS, ModelConfig, Stem

MAX_SAMPLES = 1_000_000_000_000
OWN = (
    *("out", "device", "micro", "strategy", "compile", "checkpoint_activations"),
    *("save_every", "snapshot_every", "keep", "log_every", "validation", "wandb"),
    *("vae", "text_encoder", "init", "branch", "samples"),
)
"""Settings that may change when a run is resumed. Files of weights are compared by their contents instead of their paths, and
a changed number of samples is recorded in the history of the run."""
LOADING = (
    *("workers", "prefetch", "start_method", "pin_memory", "cache", "cache_gb"),
    *("data", "control_data", "blend", "buffer", "tolerance"),
)
"""Settings of the loader that change how batches are read, but not which; the dataset is compared by its contents."""


@dataclass(frozen=True)
class ValidationConfig:
    """Validation during training."""

    data: str = ""
    """Folder or address of a dataset of other heads; there is no validation without it."""
    every: int = 50_000
    """Number of samples between two validations; the last step is always followed by one."""
    scenes: int = 16
    """Number of scenes over which the validation loss is averaged, at most as many as the dataset has."""
    pictures: int = 4
    """Number of these scenes that are sampled and drawn next to the truth."""
    steps: int = 20
    """Number of sampling steps of the pictures."""
    scale: float = 3.0
    """Guidance scale of the pictures, and the default of spinset views for the trained model."""

    def __post_init__(self) -> None:
        counts = {"every": (1, MAX_SAMPLES), "scenes": (1, 1_000_000), "pictures": (0, self.scenes), "steps": (1, 1000)}
        check_ranges(self, "--validation.", **counts, scale=(1, 100))


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW and of the learning rate."""

    lr: float = 1e-5
    """Peak learning rate; 5e-5 suits batches of 64 and more."""
    warmup: int = 8_000
    """Number of samples over which the learning rate rises from 0 to its peak."""
    cooldown: float = 0.0
    """Share of the run, at its end, over which the learning rate falls to 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip: float = 1.0
    """Norm to which gradients are clipped."""
    max_skipped: int = 20
    """Number of successive steps with gradients that are not finite after which the run stops."""

    def __post_init__(self) -> None:
        shares = {"cooldown": (0, 1), "betas": (0, 0.999999), "weight_decay": (0, 100)}
        counts = {"warmup": (0, MAX_SAMPLES), "max_skipped": (1, 1_000_000)}
        check_ranges(self, "--optim.", lr=(1e-12, 10), **counts, **shares, clip=(1e-6, 1e9))


@dataclass(frozen=True)
class EmaConfig:
    """Averages of the weights that are kept."""

    sigma_rel: tuple[float, ...] = (0.05, 0.10)
    """Lengths of power-function averages, relative to the samples of the run; from two, any other length can be rebuilt."""
    half_life: int = 0
    """Half-life of an exponential average in samples, such as 500,000; 0 keeps no such average."""

    def __post_init__(self) -> None:
        check_ranges(self, "--ema.", sigma_rel=(0.001, 0.28), half_life=(0, MAX_SAMPLES))

    @property
    def names(self) -> list[str]:
        """Names of the averages; the first is exported."""
        return [*(["classic"] if self.half_life else []), *map(power_name, self.sigma_rel)]


def power_name(sigma_rel: float) -> str:
    """Name of a power-function average."""
    return f"power-{sigma_rel:g}"


@dataclass(frozen=True)
class RayConfig:
    """Launch of the run by Ray; without an address it runs in this process, alone or under torchrun."""

    address: str = ""
    """Address of a Ray cluster, such as auto or host:6379; local starts one on this machine, even where another runs."""
    workers: int = 1
    """Number of ranks; each takes one GPU if the device is cuda."""
    failures: int = 3
    """Number of times that the ranks are started again after a failure, from the last checkpoint."""

    def __post_init__(self) -> None:
        check_ranges(self, "--ray.", workers=(1, 100_000), failures=(0, 1_000_000))


@dataclass(frozen=True)
class TrainConfig:
    """Train a multiview model; the same command resumes it."""

    loader: LoaderConfig
    model: ModelConfig
    out: str = "out/run"
    """Folder of the run: log, checkpoints, pictures, and finally the model."""
    trained: tuple[str, ...] = ("*",)
    """Patterns of the names of the weights that are trained, such as unet.*; the others stay as they are."""
    vae: str = ""
    """Folder of a diffusers AutoencoderKL; by default the one of --init."""
    text_encoder: str = ""
    """Folder of Arc2Face's text encoder as safetensors, for models that have one; by default the one of --init."""
    init: str = ""
    """Folder of a model to start from, of an earlier run or of spinset convert; by default weights are random."""
    branch: str = ""
    """Checkpoint of another run, RUN/checkpoints/N, whose whole state is taken over while settings may differ."""
    stem: Stem = field(default_factory=Stem)
    objective: Objective = field(default_factory=Objective)
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    samples: int = 1_000_000
    """Number of scenes to train on, counting repetitions; a larger number continues a finished run."""
    latents: bool = True
    """Train on the latents that spinset latents cached with this autoencoder; --no-latents encodes pictures in training."""
    micro: int = 1
    """Largest number of scenes that a rank passes through the network at once; gradients are accumulated over the batch."""
    seed: int = 0
    """Seed of the first weights and of all draws."""
    device: str = "cpu"
    """Device of the network: cpu, cuda (the GPU of the local rank), or, for one process, cuda:N."""
    precision: Precision = "auto"
    """Precision of the network: fp32, bf16 (autocast over fp32 weights), or auto: bf16 where the device computes in it."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Distribution of the network: ddp copies it to every rank, fsdp (FSDP2) shards it, which takes less memory."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of storing them: less memory, a third more time."""
    compile: bool = False
    """Compile the blocks of the network."""
    log_every: int = 50
    """Number of steps between two lines of the log."""
    save_every: int = 50_000
    """Number of samples between two checkpoints; the last step is always followed by one."""
    snapshot_every: int = 200_000
    """Number of samples between two snapshots of the averages; all are kept, 1.7 GB per average at the released size."""
    keep: int = 2
    """Number of checkpoints that are kept."""
    wandb: str = ""
    """Name of a project of Weights & Biases to log to as well."""

    def __post_init__(self) -> None:
        check_device(self.device)
        counts = dict.fromkeys(
            ("samples", "micro", "log_every", "save_every", "snapshot_every", "keep"), (1, MAX_SAMPLES)
        )
        check_ranges(self, **counts, seed=(0, MAX_SEED))
        if self.loader.epochs != FOREVER or self.loader.tail != "exact":
            raise UserError("a run ends by --samples; leave --loader.epochs at 0 and --loader.tail at exact")
        if self.loader.as_uint8 or not self.loader.decode or self.loader.latents:
            raise UserError(
                "a run reads pictures as numbers in [-1, 1] or cached latents (--latents); leave --loader.as-uint8, "
                "--loader.no-decode and --loader.latents alone"
            )
        if self.loader.sequential and self.latents:
            raise UserError(
                "--loader.sequential reads pictures out of shards; give --no-latents to encode them on the way"
            )
        if self.strategy == "fsdp" and not self.model.shardable:
            raise UserError(
                f"--strategy is fsdp, which cannot shard a model of the family {self.model.family}; give ddp"
            )
        if self.loader.control != ("control" in self.model.inputs):
            option, what = ("no-control", "takes no") if self.loader.control else ("control", "needs")
            raise UserError(f"this model {what} pictures of another head from the same cameras; give --loader.{option}")
        needed = [name for name in (*self.model.members, *self.model.inputs) if name != "control"]
        if set(self.loader.members) != set(needed):
            raise UserError(f"--loader.members are {self.loader.members}; this model takes {' and '.join(needed)}")

    def as_json(self) -> dict[str, Any]:
        """Every setting, as it stands."""
        return json.loads(json.dumps(asdict(self)))


def check_init(config: TrainConfig) -> None:
    """Raise MissingFile unless the model to start from has every part of the network that this run does not train."""
    folder = Path(config.init)
    if not config.init:
        return
    if not any(folder.glob(f"*/{WEIGHTS}")):
        raise MissingFile(f"--init is {folder}, which has no */{WEIGHTS}; give what spinset train or convert writes")
    for part in config.model.parts:
        is_trained = any(fnmatch(f"{part}.weight", pattern) for pattern in config.trained)
        if not is_trained and not (folder / part / WEIGHTS).is_file():
            raise MissingFile(
                f"--init is {folder}, which has no {part}/{WEIGHTS}; this run does not train that part, so train it first, or "
                "make it with spinset convert from the official file"
            )


def fixed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config, as JSON, that may not change when a run is resumed."""
    settings = {name: value for name, value in config.items() if name not in OWN}
    loader = {"blend_weights": [], "sequential": False, **config["loader"]}  # which older runs did not record
    settings["loader"] = {name: value for name, value in loader.items() if name not in LOADING}
    settings["loader"]["datasets"] = 1 + len(config["loader"].get("blend", []))
    # Settings at a default that changes nothing are left out, so that runs from before they existed can be resumed.
    if settings.get("trained") == ["*"]:
        del settings["trained"]
    settings["ema"] = {name: value for name, value in config["ema"].items() if value}
    return settings
