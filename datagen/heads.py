"""What a head source is: seeds go in, heads come out, and a head is a density field that can be seen."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras


@dataclass(frozen=True, eq=False)
class Views:
    """What a batch of cameras sees; rgb lies over the source's background colour, everything is in [0, 1] but depth."""

    rgb: Float[Tensor, "v h w 3"]
    alpha: Float[Tensor, "v h w"]
    depth: Float[Tensor, "v h w"]
    """Distance along the optical axis (OpenCV z) in world units, 0 where alpha is 0."""


@runtime_checkable
class DensityField(Protocol):
    """Density in [-0.5, 0.5]^3, larger inside, continuous across the surface where it equals `iso_level`."""

    iso_level: float
    device: torch.device
    """Where `density` computes and returns its values."""

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density at world points."""
        ...


@runtime_checkable
class Head(DensityField, Protocol):
    """One identity: a density field that can be seen; `density` and `render` are called from two threads at once."""

    def render(self, cameras: Cameras, resolution: int) -> Views:
        """The head as the cameras see it, in square images of `resolution` pixels."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is known of this identity, as JSON values for its row in the identities table.

        "latent_sha256" always; "defects", a list of {"kind", "strength"}, where the source plants them.
        """
        ...


@runtime_checkable
class HeadSource(Protocol):
    """A generator of heads: the same seed gives the same head, on any worker and in any order."""

    name: str
    max_seed: int
    """The largest seed that there is a head of; seeds begin at 0."""

    def head(self, seed: int) -> Head:
        """The head of one seed."""
        ...

    def lineage(self) -> dict[str, Any]:
        """What made the heads: version, settings, weights sha256 and licence (JSON values; goes into dataset.json)."""
        ...
