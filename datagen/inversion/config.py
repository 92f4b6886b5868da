"""Settings of `spinset invert`."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from jobs.devices import check_device
from manifests.errors import UserError, check_ranges

MAX_PICTURES = 16
"""All pictures are rendered in every step, with all their activations in memory."""


@dataclass(frozen=True)
class FitConfig:
    """Fitting of an identity to pictures."""

    steps: int = 200
    """Number of iterations that fit the style w, from the average of the generator."""
    tune_steps: int = 350
    """Number of further steps that tune the weights of the generator to the pictures (pivotal tuning); 0 leaves them as they
    are."""
    per_layer: bool = False
    """Fit a style for each layer (w+), which reaches the pictures more closely and other views less well."""
    fit_cameras: bool = False
    """Fit the cameras of the pictures with the style, from where they are known or measured to be."""

    def __post_init__(self) -> None:
        check_ranges(self, steps=(0, 100_000), tune_steps=(0, 100_000))


@dataclass(frozen=True)
class InvertConfig:
    """Find a PanoHead or SphereHead identity that shows the person of some pictures; the same command resumes it."""

    photos: Positional[tuple[str, ...]]
    """Pictures of one person."""
    weights: str
    """Path of an official .pkl of PanoHead or SphereHead, or of a folder that `spinset convert` made from one."""
    out: str
    """Folder of the result, which is a head source: spinset generate --source panohead --weights OUT --identities 1."""
    azimuths: tuple[float, ...] = ()
    """Azimuth in degrees of the camera of each picture, instead of that which is measured from the face."""
    elevations: tuple[float, ...] = ()
    """Elevation in degrees of the camera of each picture, with --azimuths; 0 by default."""
    planes: str = ""
    """File with the feature planes of a head, as encoders write them, instead of pictures: a .safetensors with `planes`, and
    with the styles `ws` of its super-resolution if there are any."""
    fit: Annotated[FitConfig, OmitArgPrefixes] = FitConfig()
    save_every: int = 50
    """Number of steps of tuning after which the state is saved and fit.png is drawn again."""
    device: str = "cpu"
    """Device of the generator: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        check_ranges(self, azimuths=(-360, 360), elevations=(-89.9, 89.9), save_every=(1, 100_000))
        if bool(self.photos) == bool(self.planes):
            raise UserError("give pictures of a person, or --planes with the feature planes of one")
        if len(self.photos) > MAX_PICTURES:
            raise UserError(f"{len(self.photos)} pictures; up to {MAX_PICTURES} are fitted together")
        if self.azimuths and len(self.azimuths) != len(self.photos):
            raise UserError(
                f"{len(self.photos)} pictures and {len(self.azimuths)} --azimuths; give one for each picture"
            )
        if self.elevations and len(self.elevations) != len(self.azimuths):
            raise UserError(
                f"{len(self.azimuths)} --azimuths and {len(self.elevations)} --elevations; give one for each"
            )
