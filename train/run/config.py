"""What a training run is: one frozen tree of settings, whose parts belong to the files that use them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from manifests.errors import UserError
from manifests.order import fingerprint_of
from train.data.stream import FOREVER, LoaderConfig
from train.diffusion.objective import Objective
from train.networks.model import ModelShape
from train.networks.unet import Stem
from train.run.ema import EmaConfig
from train.run.optimizer import OptimizerConfig

OWN = (
    *("out", "device", "micro", "strategy", "compile", "checkpoint_activations"),
    *("save_every", "snapshot_every", "keep", "log_every", "validation", "wandb"),
    *("vae", "text_encoder", "init"),
)
"""Settings that another machine or another patience may change in the middle of a run; weights are known by what they
are, not where they lie."""


@dataclass(frozen=True)
class ValidationConfig:
    """What is looked at while a run goes on."""

    data: str = ""
    """Folder or address of heads that are not trained on; without it there is no validation."""
    every: int = 50_000
    """Samples between two looks, and one at the end."""
    scenes: int = 16
    """Scenes whose loss is taken at each of a few noise levels."""
    pictures: int = 4
    """Of them, those that are sampled and drawn beside the truth."""
    steps: int = 20
    """Of the sampler."""
    scale: float = 3.0
    """Of its guidance, and of that of views by the model unless they are told another."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.steps < 1 or self.scenes < 1 or not 0 <= self.pictures <= self.scenes:
            raise UserError(
                f"validation.every is {self.every}, .steps {self.steps}, .scenes {self.scenes} and .pictures "
                f"{self.pictures}; the first three are 1 or more, the last at most the scenes"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Train a multiview model; the same command goes on where it was stopped."""

    loader: LoaderConfig
    out: str = "out/run"
    """Folder of the run: log, checkpoints, pictures, and the model in the end."""
    model: ModelShape = field(default_factory=ModelShape)
    vae: str = ""
    """Folder of a diffusers AutoencoderKL; that of `init` without it."""
    text_encoder: str = ""
    """Folder of Arc2Face's text encoder as safetensors, for identities of that kind; that of `init` without it."""
    init: str = ""
    """Folder of a model to begin with: of an earlier run, or of spinset convert; random weights without it."""
    stem: Stem = field(default_factory=Stem)
    objective: Objective = field(default_factory=Objective)
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    samples: int = 1_000_000
    """Scenes to train on, each time one is seen counted."""
    latents: bool = True
    """Read the latents that spinset latents cached with this autoencoder; otherwise pictures are encoded on the way."""
    micro: int = 1
    """Scenes that a rank takes through the network at once; the rest of the batch is accumulated."""
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast to bf16 over weights in fp32, or fp32 throughout; auto is bf16 where the device has bf16 instructions."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Copies of the network on every rank, or shards of it (FSDP2), which take less memory."""
    checkpoint_activations: bool = False
    """Compute activations twice instead of keeping them."""
    compile: bool = False
    """Compile the blocks of the network."""
    log_every: int = 50
    """Steps between two lines of the log."""
    save_every: int = 50_000
    """Samples between two checkpoints, and one at the end."""
    snapshot_every: int = 200_000
    """Samples between two snapshots of the averages, which are kept: 1.7 GB for each average at the released size."""
    keep: int = 2
    """Checkpoints that are kept."""
    wandb: str = ""
    """Name of a project of Weights & Biases to log to as well."""

    def __post_init__(self) -> None:
        for name in ("samples", "micro", "log_every", "save_every", "snapshot_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")
        if self.loader.epochs != FOREVER or self.loader.tail != "exact":
            raise UserError("a run ends by --samples; leave --loader.epochs at 0 and --loader.tail at exact")
        if self.loader.as_uint8 or not self.loader.decode or self.loader.control or self.loader.latents:
            raise UserError(
                "a run reads pictures as numbers in [-1, 1] or cached latents (--latents); leave --loader.as-uint8, "
                "--loader.no-decode, --loader.control and --loader.latents alone"
            )
        if set(self.loader.members) != (needed := {"rgb", "normal"} if self.model.normals else {"rgb"}):
            raise UserError(
                f"--loader.members are {self.loader.members}; this model takes {' and '.join(sorted(needed))}"
            )

    def accumulation(self, world: int) -> int:
        """Micro-batches of a rank in each step; raises ValueError if the batch does not divide."""
        whole, rest = divmod(self.loader.batch, world * self.micro)
        if rest:
            fits = [m for m in range(1, self.micro) if self.loader.batch % (world * m) == 0]
            least = world * self.micro
            hint = f"--micro {fits[-1]}" if fits else f"--loader.batch {-(-self.loader.batch // least) * least}"
            raise UserError(
                f"--loader.batch {self.loader.batch} does not divide among {world} ranks of --micro {self.micro}; take {hint}"
            )
        return whole

    def as_json(self) -> dict[str, Any]:
        """Every setting, as it stands."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def fingerprint(self) -> str:
        """Of all that makes the run what it is; a checkpoint of another run is refused."""
        settings = {name: value for name, value in self.as_json().items() if name not in OWN}
        # Read by other processes, in other ways, but in the same order.
        how = ("workers", "prefetch", "start_method", "pin_memory", "cache", "cache_gb", "data", "tolerance")
        settings["loader"] = {name: value for name, value in settings["loader"].items() if name not in how}
        if not self.optim.cooldown:
            del settings["samples"]  # nothing depends on where it ends
        return fingerprint_of(settings)
