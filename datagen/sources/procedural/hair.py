"""Hair as signed distances: a shell over the scalp that thins out to nothing at the hairline, and what hangs from it."""

import math

import torch
from torch import Tensor

from datagen.sources.procedural.anatomy import EYE, scalp
from datagen.sources.procedural.person import Hair, Person
from datagen.sources.procedural.sdf import (
    Points,
    capsule,
    ellipse,
    ellipsoid,
    ripple,
    smooth_max,
    smooth_min,
    step,
    strands,
)

SLEEK = ("bun", "ponytail")
HANGING = ("bob", "long")
CLOUDS = ("afro", "curly")
ROUND = (*CLOUDS, *HANGING)

# Thickness (cm) on top and at the sides.
_THICKNESS = {
    "bald": (0.0, 0.0), "buzz": (0.35, 0.3), "receding": (0.5, 0.7), "short": (1.5, 0.6),
    "quiff": (1.9, 0.4), "curly": (0.8, 0.8), "afro": (0.8, 0.8), "bob": (1.3, 1.1),
    "long": (1.2, 1.0), "bun": (0.75, 0.6), "ponytail": (0.75, 0.55),
}  # fmt: skip


def hairline(p: Points, person: Person) -> Tensor:
    """How far (cm, about) a point lies within the hair-bearing part of the scalp."""
    hair = person.hair
    x, y, z = p
    away = torch.atan2((x * x + 0.04).sqrt(), z + 1.0)
    front = 6.4 + 0.9 * hair.hairline
    sideburn = -2.6 if person.masculinity > 0.5 else -0.8
    line = front + (3.6 + 0.6 * hair.hairline - front) * step(away, 0.35, 1.05)
    line = line + (sideburn - 3.6 - 0.6 * hair.hairline) * step(away, 0.98, 1.3)
    line = line + (1.6 - sideburn) * step(away, 1.36, 1.62)
    line = line + (-3.2 - 1.6) * step(away, 1.72, 2.15) + (-6.6 + 3.2) * step(away, 2.0, 2.7)
    line = line - 0.5 * hair.hairline * torch.cos(away * 3.0) * step(away, 1.0, 0.2)
    inside = y - EYE - line
    if hair.style == "receding":
        crown = 5.2 - 0.8 * step(away, 1.2, 2.6) + 0.2 * torch.sin(3 * away)
        inside = torch.minimum(inside, (EYE + crown - y) * 0.8)
    return inside


def comb(p: Points, person: Person) -> Tensor:
    """A coordinate (cm) across the hairs: constant along each strand, which falls from the parting or runs to the knot."""
    hair = person.hair
    x, y, z = p
    if hair.style in SLEEK:
        # each hair lies in a half plane through the axis from the face to the knot that it is pulled back to
        up, ahead = knot(hair)[0] - EYE - 1.0, 9.0 - knot(hair)[1]
        up = ((y - EYE - 1.0) * ahead + (z - 9.0) * up) / math.hypot(up, ahead)
        return 7.5 * torch.atan2(up, (x * x + 0.2).sqrt()) + 0.25 * x
    wave = hair.wave * 0.5 * torch.sin(0.75 * y + hair.seed)
    along = (z + wave).clamp(-4.0, 3.5)
    side = x + wave - 2.6 * hair.part
    turn = torch.atan2(z + wave - along, (side * side + 0.3).sqrt())
    return along + 5.0 * turn + 0.15 * (x + wave)


def knot(hair: Hair) -> tuple[float, float]:
    """Height and depth of the point where gathered hair is held."""
    if hair.style == "bun":
        return EYE - 1.0 + 12.0 * hair.bun_height, -12.0 + 7.0 * hair.bun_height**2
    root = EYE + 1.0 + 6.0 * hair.bun_height
    return root, -10.8 + 0.25 * max(root - 2, 0)


def _shell(p: Points, person: Person, head: Tensor) -> Tensor:
    hair = person.hair
    x, y, z = p
    edge = hairline(p, person)
    top, side = _THICKNESS[hair.style]
    high = step(y - EYE, 1.5, 8.5)
    thickness = (side + (top - side) * high) * hair.volume
    across = comb(p, person)
    if hair.style in ("short", "quiff", "bob", "long"):
        edge = edge + 0.2 * strands(across, 2.2, hair.seed)
        parting = torch.exp(-(((x - 2.6 * hair.part) / 0.45) ** 2)) * step(z, -5.0, 0.0) * high
        thickness = thickness * (1 - 0.35 * parting)
    if hair.style in ("quiff", "short"):
        forward = torch.exp(-(((z - 5.0) / 3.4) ** 2) - (x - 1.5 * hair.part) ** 2 / 20 - ((y - EYE - 9.5) / 3.2) ** 2)
        thickness = thickness + (1.4 if hair.style == "quiff" else 0.5) * hair.volume * forward
    grown = thickness * (step(edge, -0.15, _RAMP.get(hair.style, 2.2)) + 1e-6) ** (0.5 if hair.style in ROUND else 0.8)
    grown = grown + 0.14 * step(edge, -0.1, 0.6)
    sunk = 0.45 * step(-edge, 0.0, 0.9) + 2.0 * step(EYE + 4.5 - y, 0.0, 4.5) * step(z, 3.0, 6.0)
    return head - grown + sunk + _texture(p, across, person) * step(edge, 0.0, 1.4)


# Distance (cm) from the hairline at which hair has its full thickness.
_RAMP = {"buzz": 1.2, "short": 2.8, "quiff": 3.2}


def _texture(p: Points, across: Tensor, person: Person) -> Tensor:
    hair = person.hair
    if hair.style in ("buzz", *CLOUDS):
        return torch.zeros_like(p[0])
    depth = {"bun": 0.05, "ponytail": 0.05, "short": 0.14, "quiff": 0.16}.get(hair.style, 0.11)
    return depth * strands(across, 1.6, hair.seed)


def _cloud(p: Points, person: Person) -> Tensor:
    """A round cloud of hair, cut back to the hairline."""
    hair, s = person.hair, person.skull
    curly = hair.style == "curly"
    grown = (1.5 if curly else 2.6) * min(max(hair.volume, 0.6), 1.25)
    cloud = ellipsoid(
        p, (0, EYE + 4.2, -1.6), (s.width / 2 + grown + 0.6, s.height - 4.2 + grown, s.length / 2 + grown - 0.3)
    )
    if curly:
        cloud = cloud + 0.38 * ripple(p, 1.7, hair.seed) + 0.15 * ripple(p, 3.6, hair.seed)
    else:
        cloud = cloud + 0.16 * ripple(p, 2.3, hair.seed) + 0.1 * ripple(p, 4.4, hair.seed)
    return smooth_max(cloud, -0.55 * hairline(p, person), 1.6 if curly else 2.2)


def _curtain(p: Points, person: Person) -> Tensor:
    """Hair that hangs around the face down to its length, open in front."""
    hair, s = person.hair, person.skull
    x, y, z = p
    down = -y + EYE
    across = comb(p, person)
    if hair.style == "bob":
        end = -8.0 - 2.5 * hair.length
        swell = 1.0 * step(down, -2.0, 5.0) * hair.volume - 1.1 * step(down, 7.0, 11.5)
    else:
        end = -12.5 - 8.0 * hair.length
        swell = 0.9 * step(down, -2.0, 7.0) * hair.volume - 1.4 * step(down, 9.0, 22.0)
    rx = s.width / 2 + 1.15 + swell
    rz = s.length / 2 - 0.3 + 0.7 * swell
    around = torch.atan2(x, z + 2.0)
    wave = 0.3 * hair.wave * torch.sin(0.75 * y + hair.seed + 1.6 * torch.sin(2.0 * around + hair.seed))
    outer = ellipse(x, z + 1.9 + 0.12 * down.clamp_min(0), rx, rz) + wave
    outer = smooth_max(outer, y - EYE - 6.0, 4.0)
    outer = smooth_max(outer, end - y + 0.45 * strands(across, 1.6, hair.seed), 1.2)
    open_x = 6.15 + 0.3 * step(down, 0.0, 5.0) - 0.9 * step(down, 8.0, 14.0)
    open_z = 1.4 - 2.2 * step(down, 8.0, 14.0)
    opening = smooth_max(x.abs() - open_x - 0.12 * strands(y * 0.4 + z, 1.5, hair.seed), open_z - z, 1.2)
    return smooth_max(outer, -opening, 0.9) + 0.12 * strands(across, 1.6, hair.seed)


def _bangs(p: Points, person: Person, head: Tensor) -> Tensor:
    """A fringe over the forehead, solid down to it."""
    x, y, z = p
    tips = strands(x, 2.6, person.hair.seed)
    low = EYE + 3.0 + 0.02 * x * x + 0.25 * tips
    sheet = head - 0.7 - 0.5 * step(y - EYE, 3.0, 7.0)
    sheet = smooth_max(sheet, low - y, 0.5)
    sheet = smooth_max(sheet, x.abs() - 6.2, 1.0)
    return smooth_max(sheet, 2.0 - z, 1.5) + 0.07 * tips


def _gathered(p: Points, person: Person) -> Tensor:
    hair = person.hair
    y, z = knot(hair)
    if hair.style == "bun":
        bun = ellipsoid(p, (0, y, z), (3.1, 2.8, 2.6))
        angle = torch.atan2(p[1] - y, p[0])
        return bun + 0.12 * strands(2.0 * angle + (p[2] - z), 1.5, hair.seed)
    upper = capsule(p, (0, y, z), (0, y - 2.8, z - 2.0), 1.0, 1.7)
    tail = capsule(p, (0, y - 2.8, z - 2.0), (0, -11.0 - 5 * hair.length, z + 0.3), 1.7, 0.5)
    tail = smooth_min(upper, tail, 1.5)
    around = torch.atan2(p[0], p[2] - z + 2.0)
    return tail + 0.1 * strands(1.5 * around + 0.15 * torch.sin(0.6 * p[1]), 1.8, hair.seed)


def has_bangs(hair: Hair) -> bool:
    return hair.style in HANGING and hair.fringe > 0.6


def hair_distance(p: Points, person: Person) -> Tensor:
    """The hair's volume; solid down to the scalp and below."""
    hair = person.hair
    head = scalp(p, person)
    distance = _shell(p, person, head)
    if hair.style in CLOUDS:
        distance = smooth_min(distance, _cloud(p, person), 1.0)
    if hair.style in HANGING:
        distance = smooth_min(distance, _curtain(p, person), 1.2)
        if has_bangs(hair) and person.looks.hat == "none":
            distance = smooth_min(distance, _bangs(p, person, head), 0.6)
    if hair.style in SLEEK:
        distance = smooth_min(distance, _gathered(p, person), 0.5)
    if person.looks.hat != "none":
        under_hat = head - 0.6 - 4.5 * step(EYE + 4.0 - p[1], 0.0, 6.5)
        distance = smooth_max(distance, under_hat, 0.4)
    return distance
