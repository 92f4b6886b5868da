"""Garments, glasses and hats as signed distances."""

import torch
from torch import Tensor

from datagen.sources.procedural.anatomy import BUST_FLOOR, EYE, bare_bust, eye_centre, mirror, scalp
from datagen.sources.procedural.person import Person
from datagen.sources.procedural.sdf import (
    Points,
    ball,
    capsule,
    ellipsoid,
    length,
    ripple,
    smooth_max,
    smooth_min,
    step,
)


def neckline(p: Points, person: Person) -> Tensor:
    """How far (cm) a point lies below the garment's upper edge."""
    x, y, z = p
    front = step(z, -5.0, 2.5)
    style = person.looks.garment
    if style == "turtleneck":
        edge = -10.6 - 1.2 * front
    elif style == "v-neck":
        edge = -13.6 - front * (8.0 - 0.85 * x.abs()).clamp_min(1.0)
    elif style == "shirt":
        edge = -12.2 - front * (5.6 - 1.3 * x.abs()).clamp_min(0.8)
    else:
        edge = -13.4 - 2.9 * front
    return edge - y


def garment(p: Points, person: Person) -> Tensor:
    """Clothes over neck and bust."""
    style = person.looks.garment
    thick = {"turtleneck": 0.55, "hoodie": 0.9, "shirt": 0.5}.get(style, 0.4)
    below = neckline(p, person)
    bust = bare_bust(p, person)
    folds = 0.10 * ripple((p[0], p[1] * 0.6, p[2]), 0.55, person.seed % 7) * step(below, 1.0, 6.0)
    cloth = bust - thick - folds
    hem = 0.14 * torch.exp(-(((below - 0.7) / 0.55) ** 2))
    cloth = smooth_max(cloth - hem, -below, 0.5)
    if style == "turtleneck":
        cloth = cloth + 0.05 * torch.sin(torch.atan2(p[0], p[2] + 3.5) * 60) * step(below, 0.0, 0.5)
    if style in ("shirt", "hoodie"):
        cloth = smooth_min(cloth, _collar(p, person, bust, below), 0.35)
    return smooth_max(cloth, BUST_FLOOR - 0.1 - p[1], 1.0)


def _collar(p: Points, person: Person, bust: Tensor, below: Tensor) -> Tensor:
    """A turned-down collar, or the soft roll of a hood around the neck."""
    x, y, z = p
    if person.looks.garment == "hoodie":
        away = torch.atan2(x.abs(), z + 3.5)
        ring_y = -13.4 - 3.6 * step(-away, -1.6, 0.0) + 0.8 * step(away, 1.8, 3.1)
        swell = 1.05 + 0.9 * step(away, 1.4, 3.1)
        return length((bust - 0.9) * 0.8, y - ring_y) - swell
    leaf = smooth_max((bust - 0.95).abs() - 0.3, -below - 0.2, 0.3)
    leaf = smooth_max(leaf, below - 3.0 + 0.25 * x.abs() - 1.4 * step(z, 0.0, 3.0), 0.3)
    return smooth_max(leaf, 0.35 - x.abs() + 0.35 * (y + 15.5).clamp_max(0.0) - 6 * step(-z, -3.0, 0.0), 0.4)


def glasses(p: Points, person: Person) -> Tensor:
    """A frame of rims, bridge and temples, without lenses."""
    q = mirror(p)
    centre = eye_centre(person)
    x, y, z = q[0] - centre[0] - 0.12, p[1] - EYE + 0.25, p[2]
    plane = centre[2] + EYE_FRONT - 0.02 * (q[0] - 3.0) ** 2
    if person.looks.glasses == "round":
        lens = length(x, y * 1.06) - 2.25
    else:
        dx, dy = (x.abs() - 1.55), (y.abs() - 1.0)
        lens = length(dx.clamp_min(0), dy.clamp_min(0)) + torch.maximum(dx, dy).clamp_max(0) - 0.85
    rim = length(lens, z - plane) - 0.23
    hinge = (centre[0] + 2.45, EYE + 0.35, centre[2] + EYE_FRONT - 0.25)
    wide = person.skull.width / 2 + 0.35
    arm = capsule(q, hinge, (wide, EYE + 0.2, 3.2), 0.24, 0.22)
    arm = smooth_min(arm, capsule(q, (wide, EYE + 0.2, 3.2), (wide + 0.1, EYE + 0.2, -1.5), 0.22), 0.3)
    gap = centre[0] + 0.12 - 2.25
    arch = p[1] - EYE - 0.55 + 0.12 * (q[0] / gap) ** 2
    bridge = torch.maximum(length(arch, z - centre[2] - EYE_FRONT - 0.1) - 0.23, q[0] - gap - 0.15)
    return smooth_min(smooth_min(rim, arm, 0.25), bridge, 0.25)


EYE_FRONT = 3.35
"""How far (cm) the plane of the lenses lies before the centre of the eyes."""


def hat(p: Points, person: Person) -> Tensor:
    """A beanie with a cuff, or a cap with a visor."""
    head = scalp(p, person)
    x, y, z = p
    if person.looks.hat == "beanie":
        edge = EYE + 4.1 + 0.22 * (z - 2.0).clamp(-12, 8)
        knit = 0.05 * torch.sin(torch.atan2(x, z + 1.0) * 70)
        top = ellipsoid(
            p,
            (0, EYE + 4.0, -1.0),
            (person.skull.width / 2 + 1.1, person.skull.height - 2.6, person.skull.length / 2 + 1.0),
        )
        dome = smooth_min(head - 1.0, top, 2.0) + knit
        cuff = smooth_max(head - 1.5 + knit, (y - edge - 1.7).abs() - 1.7, 0.7)
        return smooth_min(smooth_max(dome, edge - y + 0.5, 0.5), cuff, 0.3)
    edge = EYE + 4.9 - 0.16 * (6.0 - z).clamp(0, 16)
    crown = ellipsoid(
        p,
        (0, EYE + 4.8, -0.8),
        (person.skull.width / 2 + 1.0, person.skull.height - 3.7, person.skull.length / 2 + 0.95),
    )
    crown = smooth_min(head - 0.95, crown, 1.5)
    dome = smooth_max(crown, edge - y, 0.5)
    seam = 0.05 * torch.exp(-((x / 0.12) ** 2))
    button = ball(p, (0, EYE + person.skull.height + 1.15, -0.8), 0.5)
    visor_y = EYE + 5.1 - 0.045 * x * x - 0.16 * (z - 8)
    flat = length(x / 1.0, (z - 6.8) / 1.12) - 6.9
    visor = smooth_max(flat, (y - visor_y).abs() * 0.93 - 0.18, 0.25)
    visor = torch.maximum(visor, 5.5 - z)
    return smooth_min(smooth_min(dome + seam, visor, 0.5), button, 0.2)
