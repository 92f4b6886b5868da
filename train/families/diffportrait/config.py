"""Configs of DiffPortrait3D, DiffPortrait360 and its generator of the back view."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from manifests.errors import UserError, check_ranges
from train.diffusion.config import NoiseLevels
from train.networks.config import About, ModelConfig, UNetShape

if TYPE_CHECKING:
    from train.diffusion.process import DDPM
    from train.families.diffportrait.model import DiffPortrait
    from train.networks.model import Vae


@dataclass(frozen=True)
class DiffPortraitConfig(ModelConfig):
    """Config of a DiffPortrait model; the default is the released DiffPortrait360."""

    family: ClassVar[str] = "diffportrait"
    shardable: ClassVar[bool] = False

    unet: UNetShape = field(default_factory=lambda: UNetShape(joint_from=4))
    """Shape of the UNet, which attends within each view."""
    references: int = 2
    """Number of references in training: the front, or the front and the back; 0 for a model without a reference network."""
    control: bool = True
    """Whether pictures of a stranger say where the cameras are."""
    temporal: Literal["diffportrait3d", "diffportrait360"] | None = "diffportrait360"
    """Layout of the layers that join views; None for a model of single views, such as the generator of the back view."""
    symmetric: bool = False
    """Run the middle layer of layout diffportrait3d in both branches of guidance, unlike the released sampler."""
    prompt: bool = True
    """Whether cross-attention reads CLIP's tokens of the empty prompt, as released, or a single token of zeros."""

    def __post_init__(self) -> None:
        check_ranges(self, "--model.", references=(0, 16))
        if self.unet.joint_from < len(self.unet.channels):
            raise UserError(
                f"unet.joint_from is {self.unet.joint_from}; views of this family are joined by --model.temporal, give "
                f"{len(self.unet.channels)}"
            )

    @property
    def members(self) -> tuple[str, ...]:
        """rgb alone."""
        return ("rgb",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Pictures of another head from the same cameras, if the model has a part for them."""
        return ("control",) if self.control else ()

    @property
    def multiview(self) -> bool:
        """Whether view-temporal layers join several views."""
        return self.temporal is not None

    def process(self, noise: NoiseLevels | None = None) -> "DDPM":
        """Stable Diffusion's, with epsilon-prediction."""
        from train.diffusion.process import DDPM

        return DDPM()

    def build(self, vae: "Vae", about: About | None = None) -> "DiffPortrait":
        """A model with random weights over an autoencoder."""
        from train.families.diffportrait.model import build

        return build(self, vae, about or About())

    def conflict(self, other: ModelConfig) -> str:
        """The first setting that differs and changes what the same weights mean; empty if none does."""
        assert isinstance(other, DiffPortraitConfig)
        if self.temporal and other.temporal and self.temporal != other.temporal:
            return f"model.temporal {other.temporal}, this run has {self.temporal}"
        return ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DiffPortraitConfig":
        """The config from the JSON of `dataclasses.asdict`; raises ValueError, KeyError or TypeError if it is damaged."""
        unet: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["unet"].items()}
        return cls(**{**values, "unet": UNetShape(**unet)})
