"""The union of a model's layers as a density field, evaluated only near a surface."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datagen.sources.procedural.model import Model, evaluate
from datagen.sources.procedural.sdf import CM

ISO_LEVEL = 10.0
SLOPE = 400.0
"""Density per world unit of depth."""

BAND = 0.05
"""Half width (world) of the band around the surface in which density is linear in distance; constant beyond."""

_CELLS = 32
_SIZE = 1 / CM / _CELLS
_REACH = BAND / CM + 1.3 * 0.87 * _SIZE


@dataclass(frozen=True, eq=False)
class LayeredField:
    """A model with a coarse lattice over the unit cube that marks where the distance of each layer must be computed."""

    model: Model
    near: Tensor
    """Whether the band of each layer may reach each cell."""
    deep: Tensor
    """Whether all of each cell is deeper than the band."""

    def density(self, points: Tensor) -> Tensor:
        """Density at world points (n 3)."""
        cell = ((points.to(torch.float32) + 0.5) * _CELLS).floor().long().clamp(0, _CELLS - 1)
        cell = (cell[:, 0] * _CELLS + cell[:, 1]) * _CELLS + cell[:, 2]
        distance = torch.where(self.deep[cell], -BAND, BAND)
        index = (self.near.any(0) & ~self.deep)[cell].nonzero()[:, 0]
        cell, inside = cell[index], points[index].to(torch.float32) / CM
        nearest = distance[index]
        for layer, near in zip(self.model, self.near, strict=True):
            here = near[cell].nonzero()[:, 0]
            nearest[here] = torch.minimum(nearest[here], evaluate(layer, inside[here]) * CM)
        distance[index] = nearest
        return ISO_LEVEL - SLOPE * distance.clamp(-BAND, BAND)


def density_field(model: Model) -> LayeredField:
    """The field of a model."""
    ticks = ((torch.arange(_CELLS) + 0.5) / _CELLS - 0.5) / CM
    centres = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(-1, 3)
    distances = torch.stack([evaluate(layer, centres) for layer in model])
    return LayeredField(model, distances.abs() <= _REACH, (distances < -_REACH).any(0))
