"""Settings of networks and models, and model.json, in which a model folder keeps them; free of torch."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from manifests.errors import MissingFile, UserError, check_ranges
from train.diffusion.config import NoiseLevels

if TYPE_CHECKING:
    from train.diffusion.process import NoiseProcess
    from train.networks.model import Model, Vae

FILE, UNET, VAE, TEXT = "model.json", "unet", "vae", "text_encoder"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
FORMAT = 1
EMBEDDING = 512
"""Length of an ArcFace embedding."""


@dataclass(frozen=True)
class UNetShape:
    """Shape of a UNet; the default is that of Stable Diffusion 1.5."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each level, the finest level first."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Levels that have attention; the middle block always has."""
    blocks: int = 2
    """Number of residual blocks of each level of the encoder; the decoder has one more."""
    heads: int = 8
    """Number of attention heads."""
    context: int = 768
    """Width of the tokens that cross-attention reads."""
    joint_from: int = 1
    """First level whose self-attention joins all views; 1 leaves the finest level per view, which saves most of the cost."""
    groups: int = 32
    """Number of groups of group normalisation."""

    def __post_init__(self) -> None:
        counts = {"blocks": (1, 64), "heads": (1, 1024), "context": (1, 65_536), "groups": (1, 65_536)}
        check_ranges(self, "--model.unet.", channels=(1, 65_536), **counts, joint_from=(0, 64))
        if len(self.channels) != len(self.attention):
            raise UserError(
                f"unet.channels has {len(self.channels)} levels and unet.attention {len(self.attention)}; give one of each per "
                "level"
            )
        for width in self.channels:
            if width % self.groups or width % self.heads:
                raise UserError(f"{width} channels do not divide into {self.groups} groups and {self.heads} heads")


@dataclass(frozen=True)
class Stem:
    """Initialisation of the channels of the first convolution that a pretrained network does not have."""

    pose_init: Literal["kaiming", "zero"] = "kaiming"
    """Weights of the condition channels: kaiming is random (paper), zero keeps the output of the pretrained network."""
    scale: float = 1.0
    """Factor of the copied weights: with 0.5, image and normals together drive the network as the image alone did."""

    def __post_init__(self) -> None:
        if self.pose_init not in ("kaiming", "zero"):
            raise UserError(f"--stem.pose-init is {self.pose_init!r}; it must be kaiming or zero")
        check_ranges(self, "--stem.", scale=(1e-6, 1e6))


@dataclass(frozen=True)
class IdentityShape:
    """Encoding of an ArcFace embedding as tokens for cross-attention."""

    kind: Literal["arc2face", "token"] = "arc2face"
    """Kind of encoding: arc2face gives 77 tokens of a frozen CLIP text model; token gives the embedding as the only token."""
    width: int = 768
    """Width of a token."""
    layers: int = 12
    """Number of layers of the text model."""
    heads: int = 12
    """Number of attention heads of the text model."""

    def __post_init__(self) -> None:
        if self.kind not in ("arc2face", "token"):
            raise UserError(f"--model.identity.kind is {self.kind!r}; it must be arc2face or token")
        # An embedding must fit into a token.
        check_ranges(self, "--model.identity.", width=(EMBEDDING, 65_536), layers=(1, 1000), heads=(1, 1000))


@dataclass(frozen=True)
class RayMaps:
    """Encoding of the rays of a view (see geometry.raymaps)."""

    mode: Literal["released", "geometric"] = "released"
    """Rays that are encoded: released are those of the released weights, geometric the true rays of the latent cells."""
    origin_octaves: int = 15
    """Number of octaves of the positional encoding of ray origins."""
    direction_octaves: int = 8
    """Number of octaves of the positional encoding of ray directions."""

    def __post_init__(self) -> None:
        if self.mode not in ("released", "geometric"):
            raise UserError(f"--model.rays.mode is {self.mode!r}; it must be released or geometric")
        check_ranges(self, "--model.rays.", origin_octaves=(0, 16), direction_octaves=(0, 16))

    @property
    def channels(self) -> int:
        """Number of channels of a ray map; 144 as released."""
        return 6 + 6 * (self.origin_octaves + self.direction_octaves)


@dataclass(frozen=True)
class About:
    """Description of a model in its model.json: its training data and its defaults."""

    trained_on: str = ""
    """Heads that it was trained on; other heads are outside of its training data."""
    resolution: int = 512
    """Width and height of its views in pixels."""
    conditions: tuple[int, ...] = (0, 1, 3)
    """Numbers of given views that it was trained on."""
    identity: bool = True
    """Whether it was trained with identity embeddings."""
    samples_seen: int = 0
    """Number of training samples."""
    scale: float = 3.0
    """Default guidance scale; 3 in the paper."""
    history: tuple[str, ...] = ()
    """Events that the settings do not show: the checkpoint it was branched from, changes of its length."""
    validation_loss: float | None = None
    """Validation loss of these weights, where the run kept them for having the lowest."""
    recogniser: str = ""
    """SHA-256 of the ArcFace weights whose embeddings it was trained with; empty if unknown."""
    turns: tuple[tuple[float, float], ...] = ()
    """Smallest and largest angle in degrees by which each given view is turned from the front; empty for any."""


@dataclass(frozen=True)
class ModelConfig(ABC):
    """Config of a model; each family has a subclass, whose fields are its settings."""

    family: ClassVar[str]
    """Name of the family, as model.json states it."""
    window: ClassVar[int] = 0
    """Number of views that are sampled together from the photos alone; 0 samples anchors first and the others from them."""
    eta: ClassVar[float] = 0.0
    """Default share of new noise in each sampling step (see `train.diffusion.process.ddim`)."""
    shardable: ClassVar[bool] = True
    """Whether FSDP can shard the network; it cannot if tensors from within its blocks are used outside of them."""

    @property
    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """Members of the dataset that the model makes, rgb first; their latents are concatenated in this order."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Further members of the dataset, which the model is conditioned on."""
        return ()

    @property
    def bases(self) -> tuple[str, ...]:
        """Families besides its own from whose models training can start."""
        return ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the network, each a folder of a saved model."""
        return (UNET,)

    @property
    def azimuths(self) -> tuple[float, ...]:
        """Azimuths in degrees of the views that are made by default; 48 fill whole calls (8 + 8 times 5)."""
        return tuple(360.0 * view / 48 for view in range(48))

    @property
    @abstractmethod
    def multiview(self) -> bool:
        """Whether the model makes several views of a head together, and not single pictures."""

    @abstractmethod
    def process(self, noise: NoiseLevels | None = None) -> "NoiseProcess":
        """The noise process, with a distribution of noise levels for training."""

    @abstractmethod
    def build(self, vae: "Vae", about: About | None = None) -> "Model":
        """A model with random weights over an autoencoder."""

    @abstractmethod
    def conflict(self, other: "ModelConfig") -> str:
        """The first setting that keeps the weights of a model with another config from being continued with this one."""

    @classmethod
    @abstractmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelConfig":
        """The config from the JSON of `dataclasses.asdict`; raises ValueError, KeyError or TypeError if it is damaged."""


def model_file(folder: Path) -> Path:
    """The model.json in the folder of a model; raises MissingFile if there is none."""
    if not (folder / FILE).is_file():
        raise MissingFile(f"{folder} is no model of spinset: it has no {FILE}; give what spinset train exports")
    return folder / FILE


def require_parts(config: ModelConfig, folder: Path) -> None:
    """Raise MissingFile unless the folder of a model has the weights of all its parts."""
    for part in config.parts:
        if not (folder / part / WEIGHTS).is_file():
            raise MissingFile(f"{folder} is not whole: it has no {part}/{WEIGHTS}")


def require_vae(folder: str) -> None:
    """Raise MissingFile unless a folder has the files of a diffusers autoencoder."""
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise MissingFile(
                f"{folder} is not an autoencoder: it has no {name}; give the folder of a diffusers AutoencoderKL "
                "as safetensors, such as the vae folder of Stable Diffusion"
            )


def write_card(config: ModelConfig, about: About, folder: Path) -> None:
    """Write model.json."""
    card = {"format": FORMAT, "family": config.family, "shape": asdict(config), "about": asdict(about)}
    (folder / FILE).write_text(json.dumps(card, indent=1) + "\n")


def read_card(folder: Path) -> tuple[str, dict[str, Any], About]:
    """Read the family, the config as JSON, and the description of a model from its model.json.

    Raises:
        MissingFile: the folder has none.
        UserError: it is damaged, or of another format.
    """
    file = model_file(folder)
    try:
        card = json.loads(file.read_text())
        if card["format"] != FORMAT:
            raise UserError(f"its format is {card['format']}, this spinset reads {FORMAT}")
        about = card["about"]
        about["conditions"] = tuple(about["conditions"])
        about["history"] = tuple(about.get("history", ()))
        about["turns"] = tuple((float(low), float(high)) for low, high in about.get("turns", ()))
        if "knows" in about:  # the name that it has in models of earlier versions
            about["trained_on"] = about.pop("knows")
        # Models from before there were several families do not name theirs.
        return card.get("family", "spinmeround"), dict(card["shape"]), About(**about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} is damaged ({type(error).__name__}: {error})") from error
