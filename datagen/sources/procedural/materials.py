"""Colour of every surface of a person: skin, eyes, hair, clothes; linear light, evaluated where a ray hits."""

import numpy as np
import torch
from torch import Tensor

from datagen.sources.procedural.anatomy import EYE, eye_centre, eye_frame, lid_curves, mirror, mouth_curves
from datagen.sources.procedural.beard import beard_region
from datagen.sources.procedural.hair import SLEEK, comb, hairline, knot
from datagen.sources.procedural.model import Material
from datagen.sources.procedural.person import Person, generator
from datagen.sources.procedural.sdf import Points, Vec, bump, length, ripple, step, strands, take
from datagen.sources.procedural.wear import neckline

# Skin from the fairest to the darkest (sRGB), spaced like the ten steps of the Monk Skin Tone scale.
_TONES = (
    (250, 224, 208), (243, 212, 190), (236, 198, 168), (226, 182, 146), (207, 158, 118),
    (181, 131, 92), (150, 103, 70), (120, 80, 55), (93, 61, 43), (71, 47, 36),
)  # fmt: skip
_HAIR = {
    "black": (26, 22, 21), "dark brown": (52, 36, 28), "brown": (88, 60, 42), "auburn": (105, 52, 32),
    "red": (158, 78, 38), "dark blond": (140, 106, 68), "blond": (204, 168, 112), "grey": (150, 146, 142),
    "white": (222, 218, 212),
}  # fmt: skip
_IRIS = {
    "brown": (98, 62, 36), "dark brown": (54, 34, 24), "hazel": (124, 98, 50),
    "green": (96, 120, 78), "blue": (84, 126, 164), "grey": (122, 134, 140),
}  # fmt: skip
_CLOTH = {
    "navy": (38, 44, 58), "dark red": (122, 40, 44), "teal": (52, 92, 82), "cream": (224, 218, 206),
    "charcoal": (58, 62, 66), "mustard": (196, 156, 78), "blue": (70, 92, 138), "dusty rose": (150, 96, 84),
    "sage": (110, 122, 96), "plum": (92, 70, 104), "light grey": (180, 190, 200), "black": (28, 28, 30),
}  # fmt: skip
CLOTH_NAMES = tuple(_CLOTH)
_FRAMES = ((24, 24, 26), (92, 54, 32), (150, 118, 70), (60, 66, 84), (120, 36, 40))


def linear(colour: Vec) -> Tensor:
    """Linear light of an sRGB colour in 0..255."""
    c = torch.tensor(colour, dtype=torch.float32) / 255
    return torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def skin_tone(person: Person) -> Tensor:
    tone = float(np.clip(person.looks.tone, 0, 8.999))
    i = int(tone)
    a, b = linear(_TONES[i]), linear(_TONES[i + 1])
    colour = a + (b - a) * (tone - i)
    w = 0.06 * person.looks.warmth
    return colour * torch.tensor([1 + w, 1.0, 1 - 1.5 * w])


def hair_colour(person: Person) -> Tensor:
    base = linear(_HAIR[person.hair.colour])
    grey = person.hair.grey if person.hair.colour not in ("grey", "white") else 0.0
    return base + (linear((168, 164, 160)) - base) * 0.6 * grey


def _material(albedo: Tensor, normal: Tensor, specular: float | Tensor, shininess: float, softness: float) -> Material:
    one = torch.ones_like(albedo[:, 0])
    return Material(albedo, normal, one * specular, one * shininess, one * softness, torch.zeros_like(normal))


def _tint(albedo: Tensor, amount: Tensor, absorb: Vec) -> Tensor:
    """Pigment laid over a colour: each channel fades exponentially with the amount."""
    return albedo * torch.exp(-amount[:, None] * torch.tensor(absorb))


def _paint(albedo: Tensor, colour: Tensor, mask: Tensor) -> Tensor:
    return albedo + (colour - albedo) * mask[:, None]


def skin(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    looks = person.looks
    q = mirror(p)
    albedo = skin_tone(person).expand(len(p[0]), 3)
    mottle = ripple(p, 2.1, person.seed % 5) + 0.5 * ripple(p, 6.3, person.seed % 3, pixel)
    albedo = _tint(albedo, 0.06 * mottle + 0.06, (0.6, 1.0, 1.0))
    front = step(p[2], 2.0, 5.0)
    flush = bump((q[0] - 4.1) / 1.9, (p[1] - EYE + 3.4) / 1.5) * front
    flush = flush + 0.7 * bump(q[0] / 1.3, (p[1] - EYE + person.nose.drop - 0.7) / 1.0) * step(p[2], 8.0, 10.0)
    flush = flush + 0.6 * step(q[0], 7.2, 8.6) * step(-p[1], 0.0 - EYE - 2, 10.0) * bump((p[1] - EYE + 1.7) / 4.0)
    albedo = _tint(albedo, flush * (0.25 + 0.5 * looks.blush) * (1 - 0.06 * looks.tone), (0.08, 0.55, 0.42))
    if looks.freckles > 0:
        albedo = _tint(albedo, _freckles(p, person), (0.35, 0.8, 1.1))
    albedo = _moles(albedo, p, person)
    albedo = _beard(albedo, p, q, pixel, person)
    albedo = _scalp_shadow(albedo, p, pixel, person)
    index = ((p[2] > 4.0) & (p[1] > EYE - 11) & (p[1] < EYE + 5)).nonzero()[:, 0]
    specular = torch.full_like(p[0], _gloss(person))
    if len(index):
        near = take(p, index)
        local, shine = _features(albedo[index], near, mirror(near), person)
        albedo = albedo.index_put((index,), local)
        specular = specular.index_put((index,), shine)
    oily = bump(q[0] / 2.2, (p[1] - EYE - 4) / 3.0) + bump(q[0] / 0.9, (p[1] - EYE + 2.5) / 2.5)
    specular = specular * (1 + 0.7 * oily * front)
    return _material(albedo, normal, specular, 22.0, 1.0)


def _freckles(p: Points, person: Person) -> Tensor:
    spots = ripple(p, 9.0, 1.0 + person.seed % 11) * ripple(p, 13.0, 2.0 + person.seed % 7)
    where = bump(p[0] / 5.0, (p[1] - EYE + 2.2) / 2.6) * step(p[2], 3.0, 6.0) + 0.12
    return step(spots, 0.22, 0.48) * where * person.looks.freckles * 0.9


def _moles(albedo: Tensor, p: Points, person: Person) -> Tensor:
    rng = generator(person.seed, "moles")
    for _ in range(person.looks.moles):
        x, y = rng.choice([-1, 1]) * rng.uniform(1.6, 5.5), EYE + rng.uniform(-9.5, 5.5)
        size = rng.uniform(0.1, 0.2)
        spot = torch.exp(-((((p[0] - x) ** 2 + (p[1] - y) ** 2) / size**2) ** 2)) * step(p[2], 3.0, 4.0)
        albedo = _tint(albedo, spot * 0.9, (0.8, 1.5, 1.8))
    return albedo


def _beard(albedo: Tensor, p: Points, q: Points, pixel: float, person: Person) -> Tensor:
    style = person.looks.beard
    if style == "none":
        return albedo
    mask = beard_region(p, q, person)
    if style == "stubble":
        dots = 0.42 + 0.15 * ripple(p, 14.0, 1.0, pixel)
        return _paint(albedo, hair_colour(person) * 0.8, (mask * dots).clamp(0, 1))
    return _paint(albedo, hair_colour(person), (mask * 1.1).clamp(0, 0.9))


def beard(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    along = (p[0], 0.3 * p[1], p[2])
    shade = 0.6 * ripple(along, 5.0, 1.0, pixel) + 0.7 * ripple(along, 11.0, 2.0, pixel)
    albedo = hair_colour(person) * torch.exp(0.32 * shade)[:, None]
    return _material(albedo, normal, 0.08, 14.0, 0.3)


def _scalp_shadow(albedo: Tensor, p: Points, pixel: float, person: Person) -> Tensor:
    """Hair roots that show through where the hair begins."""
    if person.hair.style == "bald":
        return albedo
    edge = hairline(p, person)
    root = step(edge, -0.9, 0.5) * (0.55 + 0.2 * strands(comb(p, person), 5.0, 1.0, pixel))
    return _paint(albedo, hair_colour(person), root.clamp(0, 0.85) * 0.8)


def brow_mask(p: Points, q: Points, person: Person) -> Tensor:
    e = person.eyes
    x, y = q[0], p[1] - EYE
    along = ((x - 1.05) / 4.4).clamp(-0.2, 1.2)
    centre = e.brow_height + e.brow_tilt * (x - 3) - 1.9 * e.brow_arch * (along - 0.62) ** 2 + 0.4 * e.brow_arch - 0.15
    thick = e.brow_thickness * (1.12 - 0.75 * along.clamp(0, 1) ** 1.6)
    across = (y - centre).abs() / thick
    fray = 0.25 * strands(x + 0.5 * (y - centre), 9.0, 1.0)
    ends = step(along, -0.08, 0.08) * step(1.04 - along, 0.0, 0.2)
    return step(1.15 + fray - across, 0.0, 0.55) * ends * e.brow_density


def _gloss(person: Person) -> float:
    return 0.15 + 0.014 * person.looks.tone


def _features(albedo: Tensor, p: Points, q: Points, person: Person) -> tuple[Tensor, Tensor]:
    """Brows, lids, lashes and lips over the skin; returns colour and gloss."""
    looks = person.looks
    specular = torch.full_like(p[0], _gloss(person))
    u, v = eye_frame(q, person)
    upper, lower = lid_curves(u, person)
    socket = bump(u / 1.35, v / 0.95)
    albedo = _tint(albedo, socket * (0.12 + 0.1 * person.eyes.bags), (0.5, 0.8, 0.6))
    lid = bump(u / 1.1) * step(v - upper, -0.05, 0.1) * step(0.75 - (v - upper), 0.0, 0.4)
    albedo = _tint(albedo, lid * looks.makeup * 1.4, (0.8, 1.1, 0.8))
    rim = step(0.07 - torch.maximum(v - upper, lower - v).abs(), 0.0, 0.06) * (u.abs() < 1.05)
    albedo = _tint(albedo, rim * 0.35, (0.2, 0.9, 0.8))
    above = v - upper
    flick = 0.10 + 0.10 * looks.makeup + 0.05 * (1 - person.masculinity)
    lash = step(flick - (above - 0.02).abs(), 0.0, 0.08) * step(1.12 - u.abs(), 0.0, 0.15)
    albedo = _paint(albedo, linear((28, 20, 18)).expand_as(albedo), lash * 0.92)
    below = step(0.09 - (lower - v - 0.03).abs(), 0.0, 0.08) * step(1.0 - u.abs(), 0.0, 0.2)
    albedo = _paint(albedo, albedo * 0.45, below * 0.55)
    brow = brow_mask(p, q, person)
    albedo = _paint(albedo, hair_colour(person) * 0.62, brow * 0.93)
    along, top, parting, bottom = mouth_curves(q, person)
    soft = 0.10
    inside = torch.minimum(top - p[1], p[1] - bottom)
    lips = step(inside, -soft, soft) * step(1.02 - along, 0.0, 0.12) * step(p[2], 5.5, 6.5)
    creases = 0.06 * strands(p[0], 11.0, 1.0, 0.1)
    redness = looks.lip_redness + 0.8 * looks.makeup + creases
    albedo = albedo * torch.exp(-(lips * redness)[:, None] * torch.tensor([0.22, 1.35, 1.05]))
    seam = bump((p[1] - parting) / 0.075) * step(1.05 - along, 0.0, 0.15) * step(p[2], 5.5, 6.5)
    albedo = _tint(albedo, seam * 0.9, (1.0, 1.4, 1.3))
    return albedo, specular + 0.25 * lips


def eyes(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    centre = eye_centre(person)
    q = (p[0].abs(), p[1], p[2])
    x, y = q[0] - centre[0] + 0.02, p[1] - centre[1] - 0.03
    radius = length(x, y)
    angle = torch.atan2(y, x)
    u, v = eye_frame(q, person)
    upper, _ = lid_curves(u, person)
    sclera = linear((236, 230, 224)).expand(len(radius), 3)
    sclera = _tint(sclera, step(u.abs(), 0.45, 1.05) * 0.5, (0.1, 0.6, 0.55))
    iris_colour = linear(_IRIS[person.looks.eye_colour])
    fibres = 1 + 0.28 * strands(angle, 7.0, 1.0) + 0.5 * step(radius, 0.58, 0.28)
    iris = iris_colour * fibres[:, None] * (1.25 - 0.9 * step(radius, 0.50, 0.68))[:, None]
    albedo = _paint(sclera, iris, step(0.70 - radius, 0.0, 0.07))
    albedo = albedo * (1 - 0.97 * step(0.29 - radius, 0.0, 0.05))[:, None]
    albedo = albedo * (1 - 0.6 * step(0.32 - (upper - v), 0.0, 0.4))[:, None]
    outward = torch.stack([p[0] - torch.sign(p[0]) * centre[0], p[1] - centre[1], p[2] - centre[2]], -1)
    outward = torch.nn.functional.normalize(outward, dim=-1)
    glint = bump((x * torch.sign(p[0]) - 0.2) / 0.11, (y - 0.22) / 0.11) + 0.3 * bump(
        (x * torch.sign(p[0]) + 0.24) / 0.1, (y + 0.2) / 0.08
    )
    albedo = albedo + glint[:, None] * 0.9
    return _material(albedo, outward, 0.35, 90.0, 0.3)


def hair(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    style = person.hair.style
    ones = torch.ones_like(p[0])
    if style in ("afro", "curly", "buzz"):
        fine = 13.0 if style == "buzz" else 6.0
        shade = 0.6 * ripple(p, fine, 1.0, pixel) + 0.5 * ripple(p, 2 * fine, 2.0, pixel)
        strand, gloss, tilt = torch.zeros_like(normal), 0.06 if style != "curly" else 0.14, None
    else:
        across = comb(p, person)
        shade = 0.5 * strands(across, 4.1, 1.0, pixel) + 0.5 * strands(across, 13.0, 2.0, pixel)
        strand, gloss = _flow(p, normal, person), 0.24
        tilt = torch.linalg.cross(strand, normal) * (0.28 * strands(across, 7.0, 3.0, pixel))[:, None]
    albedo = hair_colour(person) * torch.exp(0.36 * shade)[:, None]
    if style == "buzz":
        albedo = _paint(skin_tone(person).expand_as(albedo), albedo, (0.82 + 0.25 * shade).clamp(0, 1))
    if tilt is not None and person.hair.grey > 0 and person.hair.colour not in ("grey", "white"):
        lock = strands(comb(p, person), 5.0, 4.0, pixel)
        streak = step(lock, 0.9 - 1.2 * person.hair.grey, 1.3 - 0.9 * person.hair.grey)
        albedo = _paint(albedo, linear((176, 172, 168)).expand_as(albedo), streak * 0.6)
    if tilt is not None:
        normal = torch.nn.functional.normalize(normal + tilt, dim=-1)
    return Material(albedo, normal, ones * gloss * (0.7 + 0.4 * shade), ones * 26, ones * 0.35, strand)


def _flow(p: Points, normal: Tensor, person: Person) -> Tensor:
    """The direction of hairs along the surface: away from the parting or the crown, or towards what gathers them."""
    x, y, z = p
    if person.hair.style in SLEEK:
        knot_y, knot_z = knot(person.hair)
        along = torch.stack([-x, knot_y - y, knot_z - z], -1)
    else:
        side = x - 2.6 * person.hair.part
        along = torch.stack([side, -2.0 - (EYE + 9 - y).clamp_min(0) * 2, z - z.clamp(-4.0, 3.5)], -1)
    along = along - (along * normal).sum(-1, keepdim=True) * normal
    return torch.nn.functional.normalize(along, dim=-1)


def garment(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    base = linear(_CLOTH[CLOTH_NAMES[person.looks.garment_colour]])
    below = neckline(p, person)
    knit = 0.05 * ripple(p, 7.0, 1.0, pixel) + 0.06 * ripple(p, 0.9, 1.0)
    hem = step(1.1 - below, 0.0, 0.15) * (0.12 if person.looks.garment in ("crew", "v-neck") else 0.0)
    albedo = base * (1 + knit - hem)[:, None]
    return _material(albedo, normal, 0.03, 8.0, 0.2)


def glasses(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    albedo = linear(_FRAMES[person.looks.glasses_colour]).expand(len(p[0]), 3)
    return _material(albedo, normal, 0.7, 60.0, 0.0)


def hat(p: Points, normal: Tensor, pixel: float, person: Person) -> Material:
    base = linear(_CLOTH[CLOTH_NAMES[person.looks.hat_colour]])
    weave = 0.06 * ripple(p, 7.0, 1.0, pixel) + 0.05 * ripple(p, 1.1, 1.0)
    if person.looks.hat == "beanie":
        weave = weave + 0.12 * torch.sin(torch.atan2(p[0], p[2] + 1.0) * 70)
    return _material(base * (1 + weave)[:, None], normal, 0.04, 10.0, 0.2)
