"""Settings of a multiview model: its UNet, ray maps, identity tokens and first convolution."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from manifests.errors import MissingFile, UserError

FILE = "model.json"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

MASK = 1
"""Channels of the mask: 1 where a view is to be made, 0 where it is given."""

EMBEDDING = 512
"""Numbers of an ArcFace embedding."""


@dataclass(frozen=True)
class UNetShape:
    """The shape of the network; the default is that of Stable Diffusion 1.5."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Of each level, the finest first."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Which levels have attention; the middle always has."""
    blocks: int = 2
    """Residual blocks of each level on the way down, one more on the way up."""
    heads: int = 8
    context: int = 768
    """Width of the tokens that cross-attention reads."""
    joint_from: int = 1
    """Levels from this one on attend across views: 1 leaves the finest per view, which costs little and saves much."""
    groups: int = 32
    """Of group norm."""

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.attention):
            raise UserError(
                f"{len(self.channels)} levels of channels and {len(self.attention)} of attention; they pair"
            )
        for width in self.channels:
            if width % self.groups or width % self.heads:
                raise UserError(f"{width} channels do not divide into {self.groups} groups and {self.heads} heads")

    def diffusers(self, in_channels: int, out_channels: int) -> dict[str, Any]:
        """The config of diffusers' UNet2DConditionModel."""
        levels = len(self.channels)
        return {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "block_out_channels": self.channels,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in self.attention[::-1]),
            "layers_per_block": self.blocks,
            # The name is diffusers' old mistake: it counts heads.
            "attention_head_dim": self.heads,
            "cross_attention_dim": self.context,
            "norm_num_groups": self.groups,
            "sample_size": 8 * 2 ** (levels - 1),
        }


@dataclass(frozen=True)
class RayMaps:
    """Which rays are encoded, and with how many octaves."""

    mode: Literal["released", "geometric"] = "released"
    """released: what the released weights know, a consistent code but no geometry (see `released_rays`);
    geometric: the true rays through the centres of the cells."""
    origin_octaves: int = 15
    direction_octaves: int = 8

    def __post_init__(self) -> None:
        if self.mode not in ("released", "geometric"):
            raise ValueError(f"ray mode is {self.mode!r}; it must be released or geometric")
        for name in ("origin_octaves", "direction_octaves"):
            if not 0 <= getattr(self, name) <= 16:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 16")

    @property
    def channels(self) -> int:
        """Of a map; 144 as released."""
        return 6 + 6 * (self.origin_octaves + self.direction_octaves)


@dataclass(frozen=True)
class IdentityShape:
    """How an identity becomes tokens."""

    kind: Literal["arc2face", "token"] = "arc2face"
    """arc2face: 77 tokens of a frozen CLIP text model; token: the embedding alone, for models without a text encoder."""
    width: int = 768
    layers: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        if self.kind not in ("arc2face", "token"):
            raise UserError(f"identity.kind is {self.kind!r}; it must be arc2face or token")
        if self.width < EMBEDDING:
            raise UserError(f"identity.width is {self.width}; an embedding of {EMBEDDING} must fit into a token")


@dataclass(frozen=True)
class ModelShape:
    """What a model is made of."""

    unet: UNetShape = field(default_factory=UNetShape)
    rays: RayMaps | None = field(default_factory=RayMaps)
    """None for single pictures, which have no views to tell apart."""
    identity: IdentityShape = field(default_factory=IdentityShape)
    normals: bool = True
    """Whether it makes normals beside the pictures."""
    scale_given: bool = True
    """Whether given views are scaled by c_in as noisy ones are, which released weights expect; small models learn to look at
    them sooner without."""
    shared_noise: bool = True
    """Whether all views of a scene are sampled from one noise, as released, or each from its own, as they are trained."""
    sigma_max: float = 700.0
    """The noise level from which it samples; within what it is trained on."""

    def __post_init__(self) -> None:
        if self.unet.context != self.identity.width:
            raise UserError(
                f"unet.context is {self.unet.context} and identity.width {self.identity.width}; the UNet reads those tokens"
            )


@dataclass(frozen=True)
class Stem:
    """How the first convolution takes on channels that a pre-trained one does not have."""

    pose_init: Literal["kaiming", "zero"] = "kaiming"
    """Weights of rays and mask: PyTorch's random ones (paper), or none, the gentler start."""
    scale: float = 1.0
    """Of the copied weights: with 0.5, image and normals together drive the network as the image alone did."""

    def __post_init__(self) -> None:
        if self.pose_init not in ("kaiming", "zero"):
            raise UserError(f"stem.pose_init is {self.pose_init!r}; it must be kaiming or zero")
        if self.scale <= 0:
            raise UserError(f"stem.scale is {self.scale:g}; it must be positive")


def model_file(folder: Path) -> Path:
    """The model.json in the folder of a model; raises MissingFile if there is none."""
    if not (folder / FILE).is_file():
        raise MissingFile(f"{folder} is no model of spinset: it has no {FILE}; give what spinset train exports")
    return folder / FILE


def require_vae(folder: str) -> None:
    """Raise MissingFile unless a folder has the files of a diffusers autoencoder."""
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise MissingFile(
                f"{folder} is not an autoencoder: it has no {name}; give the folder of a diffusers AutoencoderKL "
                "as safetensors, such as the vae folder of Stable Diffusion"
            )
