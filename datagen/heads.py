"""The protocols of head sources and of judges.

A source maps seeds to heads, and a head is a density field that can be rendered. A judge looks at a few small views of a
head before all of its views are made.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras


@dataclass(frozen=True, eq=False)
class RenderedViews:
    """Pictures of a head: rgb (sRGB, over the background colour of the source) and alpha in [0, 1], and depth."""

    rgb: Float[Tensor, "v h w 3"]
    alpha: Float[Tensor, "v h w"]
    depth: Float[Tensor, "v h w"]
    """Distance along the optical axis (OpenCV z) in world units, 0 where alpha is 0."""


@runtime_checkable
class DensityField(Protocol):
    """Density in [-0.5, 0.5]^3, larger inside, continuous across the surface where it equals `iso_level`."""

    iso_level: float
    device: torch.device
    """The device on which `density` computes and returns its values."""

    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density at world points."""
        ...


@runtime_checkable
class Head(DensityField, Protocol):
    """One identity: a density field that can be rendered; `density` and `render` are called from two threads at once."""

    def render(self, cameras: Cameras, resolution: int) -> RenderedViews:
        """Render square pictures of `resolution` pixels."""
        ...

    def facts(self) -> dict[str, Any]:
        """Facts about this identity, as JSON values for its row in the identities table.

        "latent_sha256" is required; "defects", a list of {"kind", "strength"}, is given by sources that plant them.
        """
        ...


@runtime_checkable
class HeadSource(Protocol):
    """A generator of heads: the same seed gives the same head, on any worker and in any order."""

    name: str
    max_seed: int
    """The largest seed; seeds begin at 0."""

    def head(self, seed: int) -> Head:
        """The head of one seed."""
        ...

    def lineage(self) -> dict[str, Any]:
        """The record of the source in dataset.json, as JSON values: version, settings, SHA-256 of the weights and licence."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Judges heads from small views: of every identity the same directions (degrees), at `resolution` pixels."""

    azimuth: tuple[float, ...]
    elevation: tuple[float, ...]
    resolution: int

    def __call__(self, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> str | None:
        """The reason to reject a head, or None.

        Args:
            row: the number of the identity and its facts, as columns of the identities table.
            views: the camera columns of the views.
            pictures: rgb and alpha of the views, as bytes.
        """
        ...


@runtime_checkable
class Rejection(Protocol):
    """The settings of a judge, which are sent to workers that open it."""

    def lineage(self, source: str) -> dict[str, Any]:
        """The record in dataset.json of the settings that decide which heads of a source are rejected, as JSON values."""
        ...

    def open(self, device: str, source: str) -> Judge:
        """The judge of heads of a source, with its weights loaded; raises UserError for files that cannot be used."""
        ...
