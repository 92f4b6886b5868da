"""Configs of DiffPortrait3D, DiffPortrait360 and its generator of the back view."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from manifests.errors import UserError, check_ranges
from train.diffusion.config import NoiseLevels
from train.networks.config import UNET, About, ModelConfig, UNetShape

if TYPE_CHECKING:
    from train.diffusion.process import NoiseProcess
    from train.families.diffportrait.model import DiffPortrait
    from train.networks.model import Vae


SIGMA_MAX = 80.0
"""Noise level at which EDM's process starts sampling, as in small models of SpinMeRound."""


@dataclass(frozen=True)
class DiffPortraitConfig(ModelConfig):
    """Config of a DiffPortrait model; the default is the released DiffPortrait360."""

    family: ClassVar[str] = "diffportrait"
    window: ClassVar[int] = 8
    eta: ClassVar[float] = 0.5
    shardable: ClassVar[bool] = False

    unet: UNetShape = field(default_factory=lambda: UNetShape(joint_from=4))
    """Shape of the UNet, which attends within each view."""
    references: int = 2
    """Number of references in training: the front, or the front and the back; 0 for a model without a reference network."""
    control: Literal["pictures", "rays"] | None = "pictures"
    """Source of the cameras: pictures of a stranger, as released, or the rays of their pixels; None for no cameras."""
    temporal: Literal["diffportrait3d", "diffportrait360"] | None = "diffportrait360"
    """Layout of the layers that join views; None for a model of single views, such as the generator of the back view."""
    symmetric: bool = False
    """Run the middle layer of layout diffportrait3d in both branches of guidance, unlike the released sampler."""
    noise: Literal["ddpm", "edm"] = "ddpm"
    """Noise process: ddpm is Stable Diffusion's, as released; edm is that of a UNet that began as one of SpinMeRound."""
    prompt: bool = True
    """Whether cross-attention reads CLIP's tokens of the empty prompt, as released, or a single token of zeros."""

    def __post_init__(self) -> None:
        check_ranges(self, "--model.", references=(0, 16))
        if self.control not in ("pictures", "rays", None):
            raise UserError(f"--model.control is {self.control!r}; it must be pictures, rays or None")
        if self.noise not in ("ddpm", "edm"):
            raise UserError(f"--model.noise is {self.noise!r}; it must be ddpm or edm")
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
        """Pictures of another head from the same cameras, if they say where the cameras are."""
        return ("control",) if self.control == "pictures" else ()

    @property
    def bases(self) -> tuple[str, ...]:
        """SpinMeRound, if the noise process is the same."""
        return ("spinmeround",) if self.noise == "edm" else ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The UNet, and what steers it."""
        steering = {"reference": self.references > 0, "control": self.control, "temporal": self.temporal}
        return (UNET, *(name for name, present in steering.items() if present))

    @property
    def azimuths(self) -> tuple[float, ...]:
        """The views of the papers: 16 in front of the head, or 32 around it."""
        if self.temporal == "diffportrait3d":
            return tuple(-60.0 + 8.0 * view for view in range(16))
        return tuple(11.25 * view for view in range(32))

    @property
    def multiview(self) -> bool:
        """Whether view-temporal layers join several views."""
        return self.temporal is not None

    def process(self, noise: NoiseLevels | None = None) -> "NoiseProcess":
        """Stable Diffusion's with epsilon-prediction, or EDM's with v-prediction."""
        from train.diffusion.process import DDPM, EDM

        return DDPM() if self.noise == "ddpm" else EDM(noise or NoiseLevels(), sigma_max=SIGMA_MAX)

    def build(self, vae: "Vae", about: About | None = None) -> "DiffPortrait":
        """A model with random weights over an autoencoder."""
        from train.families.diffportrait.model import build

        return build(self, vae, about or About())

    def conflict(self, other: ModelConfig) -> str:
        """The first setting that differs and changes what the same weights mean; empty if none does."""
        assert isinstance(other, DiffPortraitConfig)
        for name in ("temporal", "control", "noise"):
            old, new = getattr(other, name), getattr(self, name)
            if old and new and old != new:
                return f"model.{name} {old}, this run has {new}"
        return ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DiffPortraitConfig":
        """The config from the JSON of `dataclasses.asdict`; raises ValueError, KeyError or TypeError if it is damaged."""
        unet: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["unet"].items()}
        return cls(**{**values, "unet": UNetShape(**unet)})
