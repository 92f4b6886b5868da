"""A head as layers: solids with one material each (skin, eyes, hair and others), whose union is the head."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from datagen.sources.procedural.sdf import Points, Vec, components


@dataclass(frozen=True, eq=False)
class Material:
    """The reflectance of surface points, in linear light."""

    albedo: Tensor
    normal: Tensor
    specular: Tensor
    shininess: Tensor
    softness: Tensor
    """How far light scatters past the terminator, as below skin."""
    strand: Tensor
    """Direction of hairs; zero where there are none."""

    def mix(self, other: "Material", weight: Tensor) -> "Material":
        """This material where the weight is 0, the other where it is 1."""

        def lerp(a: Tensor, b: Tensor) -> Tensor:
            return a + (b - a) * (weight[:, None] if a.ndim == 2 else weight)

        return Material(*(lerp(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Layer:
    """One solid: its distance (cm), its material, and the box it lies in with the spacing of its mesh."""

    name: str
    low: Vec
    high: Vec
    spacing: float
    distance: Callable[[Points], Tensor]
    material: Callable[[Points, Tensor, float], Material]
    """The function from points, their normals and the size of a pixel (cm) there to their material."""
    detail: "Detail | None" = None


@dataclass(frozen=True)
class Detail:
    """A box of a layer that is meshed with a spacing of its own."""

    low: Vec
    high: Vec
    spacing: float


Model = tuple[Layer, ...]

CHUNK = 32000
"""Number of points evaluated together: enough to hide the cost of a call, few enough for a core's cache."""


def evaluate(layer: Layer, points: Tensor) -> Tensor:
    """Distances of points (n 3)."""
    pieces = [layer.distance(components(c)) for c in points.split(CHUNK)]
    return torch.cat(pieces) if pieces else points.new_zeros(0)


def evaluate_with_gradient(layer: Layer, points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of points (n 3) and their gradients (n 3)."""
    distances, gradients = [], []
    for piece in points.split(CHUNK):
        with torch.enable_grad():
            piece = piece.detach().requires_grad_()
            distance = layer.distance(components(piece))
            gradients.append(torch.autograd.grad(distance.sum(), piece)[0])
        distances.append(distance.detach())
    return torch.cat(distances), torch.cat(gradients)


def union(model: Model, points: Tensor) -> Tensor:
    """Distances of points (n 3) to the union of all layers."""
    return torch.stack([evaluate(layer, points) for layer in model]).amin(0)
