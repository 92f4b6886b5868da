"""Beards: where the face bears them, and the volume they add."""

import torch
from torch import Tensor

from datagen.sources.procedural.anatomy import EYE, body, mirror
from datagen.sources.procedural.person import Person
from datagen.sources.procedural.sdf import Points, bump, length, ripple, step


def beard_region(p: Points, q: Points, person: Person) -> Tensor:
    """How much a point of the face bears beard, 0 to 1, for the person's style."""
    style = person.looks.beard
    x, y, z = q[0], p[1] - EYE, p[2]
    mouth = -person.mouth.drop
    cheek_line = mouth + 1.8 + 0.3 * (6.5 - z).clamp(0, 6) + 2.0 * step(-z, -2.8, -1.0)
    behind = 0.5 + 0.2 * (-4.0 - y).clamp_min(0)
    jaw = step(cheek_line - y, -0.5, 1.5) * step(z - behind, -0.7, 1.3)
    under = step(y + person.skull.chin_drop + 2.2, 0.0, 2.2)
    chin = bump(x / 2.0, (y - mouth + 3.2) / 1.7) * step(z, 4.5, 6.0)
    arc = y - (mouth + 1.15 - 0.075 * x * x)
    lip = step(0.75 - arc.abs() * 1.1, 0.0, 0.5) * step(person.mouth.width + 0.9 - x, 0.0, 0.7) * step(z, 5.0, 6.5)
    around = (
        step(1.0 - (x - person.mouth.width - 0.35).abs(), 0.0, 0.7)
        * step(y - mouth + 3.2, 0.0, 1.0)
        * step(mouth + 1.2 - y, 0.0, 0.9)
    )
    if style == "moustache":
        region = lip
    elif style == "goatee":
        region = torch.maximum(torch.maximum(lip, step(chin, 0.25, 0.6)), around * step(z, 5.0, 6.5))
    else:
        region = torch.maximum(jaw * under, lip)
    mouth_open = length(x / (person.mouth.width + 0.15), (y - mouth + 0.1) / 1.0)
    return region * step(mouth_open, 0.82, 1.12)


def beard_distance(p: Points, person: Person) -> Tensor:
    """The volume of a beard over the skin; solid below it."""
    q = mirror(p)
    region = beard_region(p, q, person)
    thick = 0.55 * region
    if person.looks.beard == "full":
        y = p[1] - EYE
        middle = step(-4.6 - 0.25 * (6 - q[0]).clamp_min(0) - y, 0.0, 3.0) * step(p[2], 0.0, 4.5)
        thick = thick + (0.3 + 1.1 * person.looks.beard_length) * region * middle * step(
            y + person.mouth.drop, 0.6, -1.4
        )
    return body(p, person) - thick + 0.25 + 0.06 * ripple((p[0], 0.35 * p[1], p[2]), 3.6, person.seed % 5)
