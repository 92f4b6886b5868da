"""The bare body as signed distances: skull, face, ears, neck and bust of a person, and the eyeballs.

Frame: centimetres, x to the subject's left, y up, z out of the face; `EYE` is the height of the eyes.
"""

import math

import torch
from torch import Tensor

from datagen.sources.procedural.person import Person
from datagen.sources.procedural.sdf import (
    CM,
    Points,
    Vec,
    ball,
    bump,
    capsule,
    ellipse,
    ellipsoid,
    length,
    refine,
    smooth_max,
    smooth_min,
    step,
)

EYE = 0.6
BUST_FLOOR = -24.5


def scalp(p: Points, person: Person) -> Tensor:
    """The cranium, which hair and hats follow."""
    s = person.skull
    height = s.height - 3.2
    cranium = ellipsoid(p, (0, EYE + 3.2, -0.9), (s.width / 2, height, s.length / 2))
    forehead = ellipsoid(p, (0, EYE + 4.4, 1.9 - 0.3 * (1 - s.forehead)), (s.width / 2 - 0.9, 5.4, 6.3))
    occiput = ellipsoid(p, (0, EYE - 0.2, -3.6), (s.width / 2 - 1.1, 5.0, 6.2))
    return smooth_min(smooth_min(cranium, forehead, 2.5), occiput, 2.5)


def _neck(p: Points, mirrored: Points, person: Person) -> Tensor:
    r = person.skull.neck
    neck = capsule(p, (0, -6, -2.4), (0, -19, -4.8), r, r + 0.6)
    muscle = capsule(mirrored, (5.3, -4.5, -2.8), (1.5, -18.5, 0.4), 0.8, 0.8)
    neck = smooth_min(neck, muscle, 2.2)
    if person.masculinity > 0.5:
        apple = ellipsoid(p, (0, -12.6, -3.6 + r), (0.9, 1.3, 1.0))
        neck = smooth_min(neck, apple, 1.6)
    return neck


def bare_bust(p: Points, person: Person) -> Tensor:
    """Neck, shoulders and chest, which garments follow."""
    return smooth_min(_neck(p, mirror(p), person), _torso(p, person), 3.0)


def _torso(p: Points, person: Person) -> Tensor:
    mirrored = mirror(p)
    broad = 15.0 + 3.0 * person.masculinity
    girdle = capsule(mirrored, (0.0, -18.6, -5.4), (broad, -21.4, -5.0), 4.2, 4.0)
    trapezius = capsule(mirrored, (1.8, -11.5, -5.4), (10.5, -17.4, -5.6), 2.0, 2.0)
    chest = ellipsoid(p, (0, -26.5, -3.5), (broad + 0.5, 8.0, 7.4))
    return smooth_min(smooth_min(girdle, trapezius, 4.5), chest, 4.0)


def _skull(p: Points, q: Points, person: Person) -> Tensor:
    s = person.skull
    chin = EYE - s.chin_drop
    head = scalp(p, person)
    middle = ellipsoid(p, (0, EYE - 3.2, 2.3), (5.6 + 0.35 * s.fullness, 7.0, 6.0))
    head = smooth_min(head, middle, 2.5)
    gonion = (s.jaw_width - 0.95, EYE - s.jaw_drop, 1.0)
    ramus = capsule(q, (s.jaw_width + 0.15, EYE - 3.0, -0.4), gonion, 1.15)
    body = capsule(q, gonion, (1.4, chin + 1.3, 6.2 + s.chin_forward), 1.15, 1.15)
    jaw = smooth_min(ramus, body, 1.5)
    cheek = ellipsoid(q, (3.3, EYE - 5.4, 3.6), (1.9 + 0.9 * s.fullness, 3.0, 3.1 + 0.6 * s.fullness))
    jaw = smooth_min(jaw, cheek, 2.2)
    floor = ellipsoid(p, (0, chin + 2.3, 2.2), (3.3, 1.5 + 0.7 * s.fullness, 4.4))
    jaw = smooth_min(jaw, floor, 2.0)
    head = smooth_min(head, jaw, 2.2)
    bone = ellipsoid(q, (s.cheekbones - 1.95, EYE - 2.3, 4.8), (1.75, 1.3, 2.1))
    head = smooth_min(head, bone, 2.4)
    teeth = ellipsoid(p, (0, EYE - 6.7, 5.8 + person.mouth.forward), (3.0, 3.1, 3.0))
    head = smooth_min(head, teeth, 2.0)
    tip = ellipsoid(p, (0, chin + 1.35, 7.1 + s.chin_forward), (s.chin_width, 1.3, 1.4))
    return smooth_min(head, tip, 1.8)


def _forms(p: Points, q: Points, person: Person) -> Tensor:
    """How far soft tissue stands above the bone: brow ridge, sockets, temples, cheeks, folds."""
    s, e = person.skull, person.eyes
    x, y, z = q[0], p[1] - EYE, p[2]
    front = step(z, 0.0, 4.0)
    lift = s.brow_ridge * bump((x - 2.6) / 2.2, (y - 1.75) / 0.75)
    lift = lift + (0.25 + 0.4 * s.brow_ridge) * bump(x / 1.2, (y - 1.3) / 0.8)
    lift = lift - (0.8 + 0.15 * person.masculinity + e.depth) * bump((x - e.spacing) / 1.75, (y - 0.15) / 1.15)
    lift = lift - (0.55 + 0.6 * e.depth) * bump((x - 1.75) / 0.75, (y - 0.5) / 1.1)
    lift = lift - s.temples * bump((x - 7) / 2.0, (y - 2.6) / 2.6, (z - 4.0) / 2.6)
    lift = lift - 0.28 * max(1 - s.fullness, 0) * bump((x - 4.6) / 1.3, (y + 5.4) / 1.9)
    nasal = 1.65 + (-(y + 4.2)).clamp(0, 4) * 0.45
    fold = 0.02 + 0.24 * person.wrinkles + 0.06 * s.fullness + 0.04 * person.masculinity
    lift = lift - fold * bump((x - nasal) / 0.42, (y + 5.6) / 1.5)
    lift = lift - 0.22 * bump(x / 1.9, (y + person.mouth.drop + 1.65) / 0.42)
    return lift * front


def _lines(p: Points, q: Points, person: Person) -> Tensor:
    """Forehead lines, frown lines and crow's feet of age, as grooves (negative)."""
    w = person.wrinkles
    x, y = q[0], p[1] - EYE
    wave = y + 0.12 * torch.sin(0.9 * p[0] + person.seed % 7) - 0.03 * x * x * 0.4
    brow = torch.sin(wave * 5.2).clamp_min(0) ** 3 * bump(x / 3.6, (y - 4.6) / 1.3)
    frown = bump((x - 0.5) / 0.13, (y - 1.7) / 0.7)
    angle = torch.atan2(y, x - 3.6)
    feet = torch.sin(angle * 9).clamp_min(0) ** 2 * bump((x - 5.6) / 0.6, y / 0.9)
    return -w * (0.09 * brow + 0.09 * frown + 0.06 * feet) * step(p[2], 1.0, 4.0)


def eye_frame(q: Points, person: Person) -> tuple[Tensor, Tensor]:
    """Coordinates around the eye along (1 at the corners) and across (cm) its opening."""
    e = person.eyes
    x, y = q[0] - e.spacing, q[1] - EYE
    return (x + e.tilt * y) / e.width, y - e.tilt * x


def eye_centre(person: Person) -> Vec:
    return (person.eyes.spacing, EYE, 6.05 - 0.35 * person.eyes.depth)


EYE_RADIUS = 1.5


def lid_curves(u: Tensor, person: Person) -> tuple[Tensor, Tensor]:
    """Heights (cm) of the upper and the lower lid's edge along the opening."""
    h = person.eyes.height
    across = 1 - u.abs() ** 2.2
    upper = 0.5 * h * across * (1 - 0.12 * u)
    lower = -0.42 * h * (1 - u * u) * (1 + 0.15 * u)
    return upper, lower


def _eyelids(p: Points, q: Points, face: Tensor, person: Person) -> Tensor:
    e = person.eyes
    centre = eye_centre(person)
    u, v = eye_frame(q, person)
    upper, lower = lid_curves(u, person)
    lids = ball(q, centre, EYE_RADIUS + 0.2)
    crease = upper + 0.38 + 0.1 * e.crease
    window = bump(u / 1.05, u / 1.4)
    lids = lids + 0.16 * e.crease * bump((v - crease) / 0.13) * window
    lids = lids - 0.2 * e.hood * bump((v - crease - 0.35) / 0.3) * window
    lids = lids - 0.22 * e.bags * bump((v + 0.95) / 0.28, u / 0.9)
    lids = lids + 0.13 * e.bags * bump((v + 1.35) / 0.18, u / 1.0)
    face = smooth_min(face, lids, 0.75)
    opening = torch.maximum(v - upper, lower - v)
    opening = torch.maximum(opening * 0.9, centre[2] + 0.2 - p[2])
    return smooth_max(face, -opening, 0.12)


def _nose(p: Points, q: Points, face: Tensor, person: Person) -> Tensor:
    n = person.nose
    base = EYE - n.drop
    tip_z = 8.75 + n.projection
    root = (0.0, EYE + 0.6, 7.6 + n.bridge_height)
    tip = (0.0, base + 0.85 + 0.5 * n.tip_up, tip_z - n.tip_size)
    bridge = capsule(p, root, tip, n.bridge_width, n.tip_size * 0.74)
    middle = (0.0, 0.45 * root[1] + 0.55 * tip[1], 0.45 * root[2] + 0.55 * tip[2] + 0.12 + n.hump * 0.6)
    bridge = smooth_min(bridge, ball(p, middle, n.bridge_width * 0.85), 1.2)
    wall = capsule(p, (0, EYE - 0.6, 7.3), (0, base + 0.9, tip_z - 2.1), n.bridge_width, 0.95)
    bridge = smooth_min(bridge, wall, 0.8)
    side = capsule(q, (0.8, EYE - 0.9, 7.1), (n.width - 0.75, base + 0.9, 8.2), 0.55, 0.85)
    bridge = smooth_min(bridge, side, 1.3)
    lobule = ellipsoid(p, tip, (n.tip_size * 0.98, n.tip_size * 0.82, n.tip_size))
    wing = ellipsoid(q, (n.width - 0.66, base + 0.5, 8.75), (0.66, 0.62, 1.05))
    columella = capsule(p, (0, base + 0.2, 8.3), (0, base + 0.42 + 0.3 * n.tip_up, tip_z - 1.0), 0.4)
    nose = smooth_min(smooth_min(bridge, lobule, 1.0), columella, 0.5)
    nose = smooth_min(nose, wing, 0.8)
    face = smooth_min(face, nose, 0.9)
    nostril = ellipsoid(
        q,
        (0.3 + 0.2 * n.width, base - 0.05 + 0.25 * n.tip_up, 9.0 + 0.14 * n.projection),
        (0.17 * n.width, 0.25, 0.45),
    )
    return smooth_max(face, -nostril, 0.3)


def mouth_curves(q: Points, person: Person) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along the mouth (1 at the corners), and heights (cm) of the upper border, the parting and the lower border."""
    m = person.mouth
    u = q[0] / m.width
    parting = EYE - m.drop + m.lift * u * u * 1.6 + 0.05 * torch.cos(u * 6.0) - 0.05
    across = (1 - u * u).clamp_min(0)
    bow = 1 - m.bow * 0.28 * bump(u / 0.13) + 0.12 * m.bow * bump((u - 0.27) / 0.2)
    upper = parting + m.upper * across**0.8 * bow
    lower = parting - m.lower * across**0.62
    return u, upper, parting, lower


def _lips(p: Points, q: Points, face: Tensor, person: Person) -> Tensor:
    m = person.mouth
    u, upper, parting, lower = mouth_curves(q, person)
    y = p[1]
    fade = (1 - u * u).clamp_min(0) ** 0.5
    t = ((y - parting) / (upper - parting + 0.08)).clamp(-1, 2)
    s = ((parting - y) / (parting - lower + 0.08)).clamp(-1, 2)
    top = 0.42 * (0.4 + m.upper) * (bump((t - 0.35) / 0.65) - 0.75 * bump(t / 0.35))
    bottom = 0.5 * (0.35 + m.lower) * (bump((s - 0.42) / 0.6) - 0.613 * bump(s / 0.3))
    relief = torch.where(y > parting, top, bottom) * fade
    relief = relief - 0.16 * bump((u - 1.05) / 0.13, (y - parting) / 0.35)
    philtrum = bump(q[0] / 0.3, (y - upper - 0.75) / 0.7) - 0.6 * bump((q[0] - 0.52) / 0.22, (y - upper - 0.7) / 0.7)
    return face - (relief - 0.1 * philtrum) * step(p[2], 4.0, 6.5)


def ear_frame(q: Points, person: Person) -> Points:
    """Coordinates in an ear: backwards, upwards and outwards from where it joins the cheek."""
    size = person.ears.size
    flare = 0.2 if person.hair.style in ("bob", "long") else person.ears.flare
    x, y, z = q[0] - 6.75 - (person.skull.width - 15) * 0.45, q[1] - (EYE - 1.7), q[2] + 0.5
    sin, cos = math.sin(flare), math.cos(flare)
    back, out = (sin * x - cos * z) / size, (cos * x + sin * z) / size
    lean = 0.2
    return back * math.cos(lean) - y * math.sin(lean) / size, y * math.cos(lean) / size + back * math.sin(lean), out


def _ear(q: Points, face: Tensor, person: Person) -> Tensor:
    u, v, w = ear_frame(q, person)
    lobe = person.ears.lobe
    narrow = 1.72 - 0.5 * step(-v, -0.6, 3.2)
    rim_line = ellipse(u - 1.2, v, narrow, 3.0)
    plate = smooth_max(rim_line, (w - 0.05).abs() - 0.2, 0.3)
    helix = length(rim_line + 0.2, w - 0.2) - 0.3
    helix = smooth_max(helix, -(v + 1.9 + 0.6 * u), 0.8)
    antihelix = length(ellipse(u - 1.0, v + 0.25, narrow * 0.62, 1.85), w - 0.12) - 0.26
    antihelix = smooth_max(antihelix, 0.55 - u - 0.1 * v, 0.5)
    ear = smooth_min(plate, helix, 0.22)
    ear = smooth_min(ear, antihelix, 0.28)
    ear = smooth_min(ear, ellipsoid((u, v, w), (0.75, -2.55, 0.1), (0.75, lobe + 0.25, 0.3)), 0.4)
    bowl = ellipsoid((u, v, w), (0.75, -0.45, 0.6), (0.72, 1.15, 0.75))
    ear = smooth_max(ear, -bowl, 0.25)
    tragus = ellipsoid((u, v, w), (0.05, -0.55, 0.25), (0.3, 0.55, 0.3))
    root = ellipsoid((u, v, w), (0.35, -0.2, -0.35), (0.7, 2.2, 0.6))
    ear = smooth_min(smooth_min(ear, root, 0.5), tragus, 0.3)
    return smooth_min(face, ear * person.ears.size, 0.35)


def body(p: Points, person: Person) -> Tensor:
    """The skin: everything bare, before hair and clothes."""
    distance = refine(torch.full_like(p[0], 30.0), p, (-30, -16, -30), (30, 30, 30), lambda a, _: _head(a, person))
    return refine(distance, p, (-30, -30, -30), (30, -2, 30), lambda a, d: _below(a, d, person))


def _head(p: Points, person: Person) -> Tensor:
    q = mirror(p)
    head = _skull(p, q, person)
    head = refine(head, p, (-10, -13, 0), (10, 9, 30), lambda a, d: _face(a, d, person))
    left = refine(head, p, (4.5, -9, -8), (13, 7, 5), lambda a, d: _ear(a, d, person))
    return refine(left, p, (-13, -9, -8), (-4.5, 7, 5), lambda a, d: _ear((-a[0], a[1], a[2]), d, person))


def _face(p: Points, head: Tensor, person: Person) -> Tensor:
    q = mirror(p)
    face = head - _forms(p, q, person)
    if person.wrinkles > 0.05:
        face = face - _lines(p, q, person)
    face = refine(face, p, (-7, -4.5, 3), (7, 5.5, 30), lambda a, d: _eyelids(a, mirror(a), d, person))
    face = refine(face, p, (-5, -9, 3), (5, 4.5, 30), lambda a, d: _nose(a, mirror(a), d, person))
    return refine(face, p, (-5, -11, 3), (5, -2.5, 30), lambda a, d: _lips(a, mirror(a), d, person))


def mirror(p: Points) -> Points:
    """Both halves of a face at once, without a crease in the middle."""
    return (p[0] * p[0] + 1e-4).sqrt(), p[1], p[2]


def _below(p: Points, head: Tensor, person: Person) -> Tensor:
    joined = smooth_min(head, bare_bust(p, person), 1.6)
    return smooth_max(joined, BUST_FLOOR - p[1], 1.0)


def eyeballs(p: Points, person: Person) -> Tensor:
    """Both eyeballs."""
    return ball((p[0].abs(), p[1], p[2]), eye_centre(person), EYE_RADIUS)


def landmarks(person: Person) -> dict[str, list[float]]:
    """The five points that face recognisers align by, in world units on the skin; left is the subject's own (+x)."""
    eye, mouth, nose = eye_centre(person), person.mouth, person.nose
    corner = EYE - mouth.drop + 1.6 * mouth.lift
    tip = EYE - nose.drop + 0.75 + 0.5 * nose.tip_up
    front = {
        "nose": (0.0, tip),
        "mouth_left": (mouth.width, corner),
        "mouth_right": (-mouth.width, corner),
    }
    depth = torch.arange(15.0, 0.0, -0.02)
    points = {"eye_left": (eye[0], eye[1], eye[2] + EYE_RADIUS), "eye_right": (-eye[0], eye[1], eye[2] + EYE_RADIUS)}
    for name, (x, y) in front.items():
        solid = body((torch.full_like(depth, x), torch.full_like(depth, y), depth), person) < 0
        points[name] = (x, y, float(depth[solid.nonzero()[0, 0]]))
    return {name: [c * CM for c in point] for name, point in points.items()}
