"""Defects of generated heads, planted on purpose: each changes a model and returns a record of the change."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datagen.config import DEFECT_KINDS
from datagen.sources.procedural.anatomy import EYE
from datagen.sources.procedural.model import Layer, Material, Model, union
from datagen.sources.procedural.people import build_model
from datagen.sources.procedural.person import draw_person, generator
from datagen.sources.procedural.sdf import CM, Points, capsule, ellipsoid, ripple, smooth_max, step

_CENTRE = (0.0, EYE + 2.0, -0.9)
"""The axis of the head; a face at the back is the face in front turned around it."""

Weight = Callable[[Points], Tensor]


@dataclass(frozen=True)
class Haze:
    """Fog of Gaussian density around a point; world units, `opacity` is the optical depth through its middle."""

    centre: tuple[float, float, float]
    radius: float
    opacity: float
    colour: tuple[float, float, float]


def plant(
    model: Model, seed: int, rate: float, kinds: tuple[str, ...]
) -> tuple[Model, tuple[Haze, ...], list[dict[str, Any]]]:
    """A model with defects drawn for a seed, the fog around it, and the truth about what was planted."""
    fog: list[Haze] = []
    truth: list[dict[str, Any]] = []
    for kind in (k for k in DEFECT_KINDS if k in kinds):
        rng = generator(seed, f"defect {kind}")
        planted, strength = rng.random() < rate, float(rng.uniform(0.25, 1.0))
        if not planted:
            continue
        if kind == "haze":
            haze, fact = _haze(rng, strength)
            fog.append(haze)
        else:
            model, fact = _PLANTERS[kind](model, rng, strength)
        truth.append({"kind": kind, "strength": strength, **fact})
    return model, tuple(fog), truth


def _janus(model: Model, rng: np.random.Generator, strength: float) -> tuple[Model, dict[str, Any]]:
    """The head turned half around replaces its own back."""
    turned = tuple(_turn(layer) for layer in model if layer.name != "garment")
    amount = 0.6 + 0.4 * strength

    def weight(p: Points) -> Tensor:
        return amount * step(_CENTRE[2] - p[2], 0.8, 4.0) * step(p[1], -14.0, -10.0)

    return mix(model, turned + tuple(layer for layer in model if layer.name == "garment"), weight), {}


def _turn(layer: Layer) -> Layer:
    def turn(p: Points) -> Points:
        return -p[0], p[1], 2 * _CENTRE[2] - p[2]

    def material(p: Points, normal: Tensor, pixel: float) -> Material:
        flip = torch.tensor([-1.0, 1.0, -1.0])
        found = layer.material(turn(p), normal * flip, pixel)
        return replace(found, normal=found.normal * flip, strand=found.strand * flip)

    low = (-layer.high[0], layer.low[1], 2 * _CENTRE[2] - layer.high[2])
    high = (-layer.low[0], layer.high[1], 2 * _CENTRE[2] - layer.low[2])
    return replace(
        layer, low=low, high=high, distance=lambda p: layer.distance(turn(p)), material=material, detail=None
    )


def _identity_drift(model: Model, rng: np.random.Generator, strength: float) -> tuple[Model, dict[str, Any]]:
    """Another person on one side."""
    other, side = int(rng.integers(2**31)), float(rng.choice([-1.0, 1.0]))
    amount = 0.45 + 0.55 * strength

    def weight(p: Points) -> Tensor:
        z = p[2] - _CENTRE[2]
        return amount * step(side * p[0] / (p[0] * p[0] + z * z + 4).sqrt(), -0.45, 0.45)

    return mix(model, build_model(draw_person(other)), weight), {
        "other_seed": other,
        "side": "left" if side > 0 else "right",
    }


def mix(one: Model, two: Model, weight: Weight) -> Model:
    """A blend of two models: the first where the weight is 0, the second where it is 1."""
    first, second = {layer.name: layer for layer in one}, {layer.name: layer for layer in two}
    names = [*first, *(name for name in second if name not in first)]
    return tuple(_mix_layer(first.get(name), second.get(name), weight) for name in names)


def _mix_layer(one: Layer | None, two: Layer | None, weight: Weight) -> Layer:
    known = [layer for layer in (one, two) if layer is not None]
    small = known[0].name in ("eyes", "glasses")

    def distance(p: Points) -> Tensor:
        w = weight(p)
        a = torch.full_like(w, 3.0) if one is None else one.distance(p).clamp(-4, 4)
        b = torch.full_like(w, 3.0) if two is None else two.distance(p).clamp(-4, 4)
        # Small solids would vanish halfway between here and nowhere: they sink a little instead.
        return torch.minimum(a + 0.5 * w**2, b + 0.5 * (1 - w) ** 2) if small else a + (b - a) * w

    def material(p: Points, normal: Tensor, pixel: float) -> Material:
        if one is None or two is None:
            return known[0].material(p, normal, pixel)
        return one.material(p, normal, pixel).mix(two.material(p, normal, pixel), weight(p))

    low_x, low_y, low_z = (min(layer.low[i] for layer in known) for i in range(3))
    high_x, high_y, high_z = (max(layer.high[i] for layer in known) for i in range(3))
    low, high = (low_x, low_y, low_z), (high_x, high_y, high_z)
    return Layer(known[0].name, low, high, 0.8 * min(layer.spacing for layer in known), distance, material)


def _floater(model: Model, rng: np.random.Generator, strength: float) -> tuple[Model, dict[str, Any]]:
    """Blobs beside the head that touch nothing."""
    blobs = []
    for _ in range(200):
        size = float(rng.uniform(0.6, 1.0)) * (0.7 + 1.3 * strength)
        angle = float(rng.uniform(-0.3, math.pi + 0.3))
        away = float(rng.uniform(11.5, 14.2))
        centre = (away * math.cos(angle), EYE + 1.0 + away * math.sin(angle) * 0.95, float(rng.uniform(-5, 5)))
        gap = min((math.dist(centre, c) - r for c, r in blobs), default=9.0)
        if float(union(model, torch.tensor([centre]))[0]) > 1.4 * size + 0.5 and gap > 1.4 * size + 0.3:
            blobs.append((centre, size))
        if len(blobs) == 1 + round(2 * strength):
            break
    shades = torch.from_numpy(rng.uniform(0.12, 0.5, 3).astype(np.float32))

    def distance(p: Points) -> Tensor:
        parts = [ellipsoid(p, c, (r, 0.8 * r, 1.1 * r)) for c, r in blobs]
        return torch.stack(parts).amin(0) + 0.08 * ripple(p, 2.0, 1.0)

    def material(p: Points, normal: Tensor, pixel: float) -> Material:
        one = torch.ones_like(p[0])
        return Material(shades.expand(len(p[0]), 3), normal, one * 0.05, one * 10, one * 0.3, torch.zeros_like(normal))

    low = tuple(min(c[i] - 1.3 * r for c, r in blobs) - 0.3 for i in range(3))
    high = tuple(max(c[i] + 1.3 * r for c, r in blobs) + 0.3 for i in range(3))
    layer = Layer("floater", low, high, 0.25, distance, material)
    return (*model, layer), {"blobs": [{"centre": [v * CM for v in c], "radius": r * CM} for c, r in blobs]}


def _hole(model: Model, rng: np.random.Generator, strength: float) -> tuple[Model, dict[str, Any]]:
    """A tunnel that runs shallow under scalp or cheek and opens at both ends."""
    azimuth, elevation = float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(-0.35, 0.8))
    outward = np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )
    surface = np.array(_CENTRE) + outward * reach(model, _CENTRE, tuple(outward))
    across = np.cross(outward, [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across)
    roll = float(rng.uniform(0, math.pi))
    axis = math.cos(roll) * across + math.sin(roll) * np.cross(outward, across)
    radius = 0.7 + 1.1 * strength
    middle = surface - outward * (radius + 0.8)
    ends = [tuple(middle + s * 10.0 * axis) for s in (-1, 1)]
    carved = carve(model, lambda p: capsule(p, ends[0], ends[1], radius), 0.25, wider="hair")
    return carved, {"centre": [float(v) * CM for v in middle], "axis": axis.tolist(), "radius": radius * CM}


def _truncated(model: Model, rng: np.random.Generator, strength: float) -> tuple[Model, dict[str, Any]]:
    """A flat cut where the crop of the generator ends."""
    side = str(rng.choice(["top", "left", "right", "back"]))
    outward = {"top": (0.0, 1.0, 0.0), "left": (1.0, 0.0, 0.0), "right": (-1.0, 0.0, 0.0), "back": (0.0, 0.0, -1.0)}[
        side
    ]
    centre = (0.0, EYE + 3.0, -1.5)
    offset = (
        reach(model, centre, outward)
        - (1.0 + 2.2 * strength)
        + sum(c * o for c, o in zip(centre, outward, strict=True))
    )

    def beyond(p: Points) -> Tensor:
        plane = p[0] * outward[0] + p[1] * outward[1] + p[2] * outward[2] - offset
        return -plane if side == "top" else -torch.minimum(plane, p[1] + 13.0)

    return carve(model, beyond, 0.12, wider="skin"), {"side": side, "offset": offset * CM}


def _haze(rng: np.random.Generator, strength: float) -> tuple[Haze, dict[str, Any]]:
    """Fog around the head."""
    x, y, z = rng.normal(0, 0.03, 3).tolist()
    shade = float(rng.uniform(0.55, 0.9))
    haze = Haze(
        (x, y, z), float(rng.uniform(0.14, 0.22)), 0.25 + 1.1 * strength, (shade, shade, min(1.0, shade * 1.03))
    )
    return haze, {"centre": [x, y, z], "radius": haze.radius, "opacity": haze.opacity}


_PLANTERS = {
    "janus": _janus,
    "identity_drift": _identity_drift,
    "floater": _floater,
    "hole": _hole,
    "truncated": _truncated,
}


def carve(model: Model, tool: Callable[[Points], Tensor], rounding: float, wider: str) -> Model:
    """A model without what lies in a solid; one layer is cut wider, so that no two layers share the cut's surface."""

    def carved(layer: Layer) -> Layer:
        extra = 0.15 if layer.name == wider else 0.0
        return replace(layer, distance=lambda p: smooth_max(layer.distance(p), extra - tool(p), rounding))

    return tuple(carved(layer) for layer in model)


def reach(model: Model, start: tuple[float, float, float], direction: tuple[float, float, float]) -> float:
    """How far (cm) the solid extends from a point in a direction."""
    t = torch.arange(25.0, 0.0, -0.1)
    line = torch.tensor(start) + t[:, None] * torch.tensor(direction, dtype=torch.float32)
    solid = (union(model, line) < 0).nonzero()
    return float(t[solid[0, 0]]) if len(solid) else 0.0
