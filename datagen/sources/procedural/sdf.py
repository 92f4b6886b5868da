"""Signed-distance arithmetic on points given as three coordinate tensors; lengths are centimetres, negative is inside.

Formulas: Inigo Quilez, "distance functions" and "smooth minimum" (iquilezles.org).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CM = 0.018
"""World units per centimetre: the visible square of the default camera is then 35 cm wide."""

Points = tuple[Tensor, Tensor, Tensor]
Number = float | int
Vec = tuple[Number, Number, Number]


def smooth_min(a: Tensor, b: Tensor, k: Number) -> Tensor:
    """The union of two solids, rounded over a width k where they meet."""
    h = (1 - (a - b).abs() / k).clamp_min(0)
    return torch.minimum(a, b) - h * h * (k / 4)


def smooth_max(a: Tensor, b: Tensor, k: Number) -> Tensor:
    """The intersection of two solids, rounded over a width k; with -b it is a without b."""
    h = (1 - (a - b).abs() / k).clamp_min(0)
    return torch.maximum(a, b) + h * h * (k / 4)


def length(x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    squared = x * x + y * y if z is None else x * x + y * y + z * z
    return (squared + 1e-8).sqrt()


def components(points: Tensor) -> Points:
    """The coordinates of points (n 3), each in a tensor of its own."""
    x, y, z = points.T.contiguous()
    return x, y, z


def take(p: Points, index: Tensor) -> Points:
    """Some of the points."""
    x, y, z = p
    return x[index], y[index], z[index]


def ellipsoid(p: Points, centre: Vec, radii: Vec) -> Tensor:
    """A first-order distance to an ellipsoid, exact on its surface and on spheres."""
    x, y, z = ((c - m) / r for c, m, r in zip(p, centre, radii, strict=True))
    k0 = length(x, y, z)
    k1 = length(x / radii[0], y / radii[1], z / radii[2])
    return k0 * (k0 - 1) / k1


def ellipse(x: Tensor, y: Tensor, rx: float | Tensor, ry: float | Tensor) -> Tensor:
    """A first-order distance to a planar ellipse around the origin."""
    x, y = x / rx, y / ry
    k0 = length(x, y)
    return k0 * (k0 - 1) / length(x / rx, y / ry)


def ball(p: Points, centre: Vec, radius: float) -> Tensor:
    return length(p[0] - centre[0], p[1] - centre[1], p[2] - centre[2]) - radius


def capsule(p: Points, a: Vec, b: Vec, radius_a: float, radius_b: float | None = None) -> Tensor:
    """A rod with round ends from a to b whose radius changes linearly."""
    ab = [e - s for s, e in zip(a, b, strict=True)]
    ap = [c - s for c, s in zip(p, a, strict=True)]
    t = ((ap[0] * ab[0] + ap[1] * ab[1] + ap[2] * ab[2]) / sum(e * e for e in ab)).clamp(0, 1)
    distance = length(*(q - e * t for q, e in zip(ap, ab, strict=True)))
    return distance - (radius_a if radius_b is None else radius_a + (radius_b - radius_a) * t)


def step(x: Tensor, low: Number, high: Number) -> Tensor:
    """The smooth step from 0 at `low` to 1 at `high`."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bump(*scaled: Tensor) -> Tensor:
    """A Gaussian of coordinates already divided by their widths."""
    first, *others = (s * s for s in scaled)
    return torch.exp(-sum(others, start=first))


def _filtered(frequency: float, blur: float) -> float:
    """The amplitude of a wave after averaging over a pixel of `blur` radians."""
    return math.exp(-((frequency * blur) ** 2) / 14)


def ripple(p: Points, frequency: float, seed: Number = 0.0, pixel: float = 0.0) -> Tensor:
    """A smooth, cheap, band-limited noise in about [-1, 1], faded where pixels (cm) are too coarse for it: warped sines."""
    x, y, z = (c * frequency for c in p)
    u = torch.sin(x + 1.7 * torch.sin(0.61 * y + 0.37 * z + seed) + seed)
    v = torch.sin(y + 1.7 * torch.sin(0.57 * z + 0.41 * x + 2.1 * seed) + 1.3 * seed)
    w = torch.sin(z + 1.7 * torch.sin(0.53 * x + 0.43 * y + 3.7 * seed) + 2.9 * seed)
    return (u * v + v * w + w * u) * (0.6 * _filtered(2 * frequency, pixel))


def strands(t: Tensor, frequency: float, seed: Number = 0.0, pixel: float = 0.0) -> Tensor:
    """One-dimensional noise in about [-1, 1] across hairs, t in cm, faded where pixels (cm) are too coarse for it."""
    t = t * frequency
    weights = [w * _filtered(k * frequency, pixel) for w, k in ((0.45, 1.0), (0.35, 2.37), (0.2, 5.31))]
    total = weights[0] * torch.sin(t + seed)
    if weights[1] > 0.01:
        total = total + weights[1] * torch.sin(2.37 * t + 1.3 * torch.sin(0.71 * t + seed) + 2 * seed)
    if weights[2] > 0.01:
        total = total + weights[2] * torch.sin(5.31 * t + 1.1 * torch.sin(1.13 * t) + 3 * seed)
    return total


def inside(p: Points, low: Vec, high: Vec) -> Tensor:
    """Indices of the points within a box."""
    within = (
        (p[0] > low[0]) & (p[0] < high[0]) & (p[1] > low[1]) & (p[1] < high[1]) & (p[2] > low[2]) & (p[2] < high[2])
    )
    return within.nonzero()[:, 0]


def refine(distance: Tensor, p: Points, low: Vec, high: Vec, part: Callable[[Points, Tensor], Tensor]) -> Tensor:
    """`distance` with `part` applied to the points of a box; the part must leave values at the box's border alone."""
    index = inside(p, low, high)
    if len(index) == 0:
        return distance
    if len(index) == len(distance):
        return part(p, distance)
    local = part(take(p, index), distance[index])
    return distance.index_put((index,), local)
