"""Config of a SpinMeRound model."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from manifests.errors import UserError, check_ranges
from train.diffusion.config import NoiseLevels
from train.networks.config import About, IdentityShape, ModelConfig, RayMaps, UNetShape

if TYPE_CHECKING:
    from train.diffusion.process import EDM
    from train.families.spinmeround.model import SpinMeRound
    from train.networks.model import Vae


@dataclass(frozen=True)
class SpinMeRoundConfig(ModelConfig):
    """Config of a SpinMeRound model; the default is the released one."""

    family: ClassVar[str] = "spinmeround"

    unet: UNetShape = field(default_factory=UNetShape)
    rays: RayMaps | None = field(default_factory=RayMaps)
    """Encoding of the rays; None for a model of single pictures, which has no view directions to encode."""
    identity: IdentityShape = field(default_factory=IdentityShape)
    normals: bool = True
    """Generate normals together with the pictures, instead of pictures alone."""
    scale_given: bool = True
    """Scale given views by c_in like noisy ones, as the released weights expect; small models learn sooner without it."""
    shared_noise: bool = True
    """Sample all views of a scene from one noise, as released, instead of one noise per view, as in training."""
    sigma_max: float = 700.0
    """Noise level at which sampling starts; it lies within the levels of training."""

    def __post_init__(self) -> None:
        check_ranges(self, "--model.", sigma_max=(0.01, 100_000))
        if self.unet.context != self.identity.width:
            raise UserError(
                f"unet.context is {self.unet.context} and identity.width {self.identity.width}; they must be equal, "
                "because the UNet reads those tokens"
            )

    @property
    def members(self) -> tuple[str, ...]:
        """rgb, and normal if the model makes normals."""
        return ("rgb", "normal") if self.normals else ("rgb",)

    @property
    def multiview(self) -> bool:
        """Whether views have rays."""
        return self.rays is not None

    def process(self, noise: NoiseLevels | None = None) -> "EDM":
        """EDM with v-prediction."""
        from train.diffusion.process import EDM

        return EDM(noise or NoiseLevels(), sigma_max=self.sigma_max)

    def build(self, vae: "Vae", about: About | None = None) -> "SpinMeRound":
        """A model with random weights over an autoencoder."""
        from train.families.spinmeround.model import SpinMeRound, SpinMeRoundNetwork
        from train.networks.identity import build_tokens

        network = SpinMeRoundNetwork(self, vae.channels)
        return SpinMeRound(self, network, vae, about or About(), tokens=build_tokens(self.identity))

    def conflict(self, other: ModelConfig) -> str:
        """The first setting that differs and changes the inputs of the same weights; empty if none does."""
        assert isinstance(other, SpinMeRoundConfig)
        if other.rays is None:  # a model of single pictures, whose inputs are a part of these
            return ""
        for name, old, new in (
            ("rays", other.rays, self.rays),
            ("unet.joint-from", other.unet.joint_from, self.unet.joint_from),
            ("scale-given", other.scale_given, self.scale_given),
            ("identity.kind", other.identity.kind, self.identity.kind),
        ):
            if old != new:
                return f"model.{name} {old}, this run has {new}"
        return ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SpinMeRoundConfig":
        """The config from the JSON of `dataclasses.asdict`; raises ValueError, KeyError or TypeError if it is damaged."""
        unet: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["unet"].items()}
        rays = RayMaps(**values["rays"]) if values["rays"] else None
        parts = {"unet": UNetShape(**unet), "rays": rays, "identity": IdentityShape(**values["identity"])}
        return cls(**{**values, **parts})
