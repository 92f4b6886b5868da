"""The parameters of a person, drawn from a seed; lengths in centimetres.

Means and spreads follow Farkas, "Anthropometry of the Head and Face" (1994), between a feminine and a masculine pole.
Each group of parameters has its own generator, so that a new parameter in one leaves the others as they were.
"""

import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np

HAIR_STYLES = ("bald", "buzz", "receding", "short", "quiff", "curly", "afro", "bob", "long", "bun", "ponytail")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
HATS = ("none", "beanie", "cap")
GARMENTS = ("crew", "v-neck", "turtleneck", "shirt", "hoodie")
EYE_COLOURS = ("brown", "dark brown", "hazel", "green", "blue", "grey")
HAIR_COLOURS = ("black", "dark brown", "brown", "auburn", "red", "dark blond", "blond", "grey", "white")

T = TypeVar("T", bound=Any)


def normal(feminine: float, masculine: float, deviation: float) -> Any:
    """A field that is drawn around a mean between a feminine and a masculine one."""
    return field(metadata={"draw": (feminine, masculine, deviation)})


@dataclass(frozen=True)
class Skull:
    """Cranium, jaw and neck; `fullness`, `forehead` and `temples` are about 0 to 1."""

    width: float = normal(14.3, 15.4, 0.5)
    length: float = normal(18.5, 19.5, 0.5)
    height: float = normal(11.2, 11.5, 0.4)
    forehead: float = normal(0.8, 0.25, 0.3)
    brow_ridge: float = normal(0.0, 0.5, 0.12)
    cheekbones: float = normal(6.45, 6.6, 0.28)
    fullness: float = normal(0.55, 0.4, 0.3)
    jaw_width: float = normal(4.55, 5.7, 0.4)
    jaw_drop: float = normal(6.9, 7.5, 0.45)
    chin_drop: float = normal(10.6, 11.8, 0.45)
    chin_width: float = normal(1.25, 2.1, 0.3)
    chin_forward: float = normal(0.3, 0.6, 0.35)
    neck: float = normal(4.65, 5.65, 0.25)
    temples: float = normal(0.35, 0.45, 0.15)


@dataclass(frozen=True)
class Eyes:
    """Eyes, lids and brows; `width` is half the opening, `tilt` a slope; creases, hoods and bags are about 0 to 1."""

    spacing: float = normal(3.13, 3.22, 0.12)
    width: float = normal(1.62, 1.5, 0.07)
    height: float = normal(1.32, 1.04, 0.11)
    tilt: float = normal(0.07, 0.04, 0.06)
    depth: float = normal(0.0, 0.2, 0.18)
    crease: float = normal(0.6, 0.5, 0.3)
    hood: float = normal(0.2, 0.4, 0.25)
    bags: float = normal(0.1, 0.15, 0.1)
    brow_height: float = normal(2.25, 1.85, 0.18)
    brow_thickness: float = normal(0.31, 0.42, 0.06)
    brow_arch: float = normal(0.42, 0.2, 0.12)
    brow_tilt: float = normal(0.05, 0.03, 0.06)
    brow_density: float = normal(0.8, 0.9, 0.15)


@dataclass(frozen=True)
class Nose:
    """The nose; `drop` is how far its base lies below the eyes, `width` half of it."""

    drop: float = normal(4.45, 5.0, 0.3)
    width: float = normal(1.5, 1.85, 0.2)
    bridge_width: float = normal(0.56, 0.74, 0.09)
    bridge_height: float = normal(0.0, 0.25, 0.28)
    hump: float = normal(0.0, 0.18, 0.16)
    projection: float = normal(1.85, 2.3, 0.28)
    tip_up: float = normal(0.38, 0.05, 0.2)
    tip_size: float = normal(0.78, 0.95, 0.1)


@dataclass(frozen=True)
class Mouth:
    """The lips; `width` is half the mouth, `bow`, `lift` and `forward` shape it."""

    drop: float = normal(6.95, 7.5, 0.22)
    width: float = normal(2.45, 2.65, 0.17)
    upper: float = normal(0.88, 0.62, 0.15)
    lower: float = normal(1.12, 0.85, 0.16)
    bow: float = normal(0.6, 0.4, 0.25)
    lift: float = normal(0.26, 0.18, 0.12)
    forward: float = normal(0.15, 0.1, 0.22)


@dataclass(frozen=True)
class Ears:
    """The ears; `flare` is their angle to the head in radians."""

    size: float = normal(0.96, 1.04, 0.06)
    flare: float = normal(0.45, 0.5, 0.14)
    lobe: float = normal(0.6, 0.62, 0.1)


@dataclass(frozen=True)
class Hair:
    """The hair; what is not a name, a colour or a length is about 0 to 1."""

    style: str
    colour: str
    volume: float
    length: float
    part: float
    fringe: float
    hairline: float
    wave: float
    grey: float
    seed: float
    bun_height: float


@dataclass(frozen=True)
class Looks:
    """Colour, and what is worn."""

    tone: float
    warmth: float
    blush: float
    freckles: float
    moles: int
    eye_colour: str
    lip_redness: float
    makeup: float
    beard: str
    beard_length: float
    glasses: str
    glasses_colour: int
    hat: str
    garment: str
    garment_colour: int
    hat_colour: int


@dataclass(frozen=True)
class Person:
    """The parameters of one person."""

    seed: int
    age: float
    masculinity: float
    skull: Skull
    eyes: Eyes
    nose: Nose
    mouth: Mouth
    ears: Ears
    hair: Hair
    looks: Looks

    @property
    def wrinkles(self) -> float:
        """How lined the skin is, 0 young to 1 old."""
        return float(np.clip((self.age - 30) / 50, 0, 1))

    def parameters(self) -> dict[str, Any]:
        return asdict(self)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """The random generator of one purpose of one seed."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


class _Draw:
    """Draws around a mean that lies between a feminine and a masculine value, kept within 2.2 deviations."""

    def __init__(self, seed: int, purpose: str, masculinity: float):
        self.rng = generator(seed, purpose)
        self.masculinity = masculinity

    def __call__(self, feminine: float, masculine: float, deviation: float) -> float:
        mean = feminine + (masculine - feminine) * self.masculinity
        return float(mean + deviation * np.clip(self.rng.standard_normal(), -2.2, 2.2))

    def all(self, kind: type[T]) -> T:
        """A group of parameters, each drawn as its field states."""
        return kind(**{field.name: self(*field.metadata["draw"]) for field in fields(kind)})

    def unit(self) -> float:
        return float(self.rng.random())

    def pick(self, names: tuple[str, ...], weights: list[float]) -> str:
        return names[int(self.rng.choice(len(names), p=np.array(weights) / sum(weights)))]


def draw_person(seed: int) -> Person:
    """The person of a seed; what age changes is added to the draws."""
    rng = generator(seed, "person")
    age = float(18 + 66 * rng.beta(1.2, 2.1))
    side = rng.random() < 0.5
    masculinity = float(np.clip(rng.normal(0.88 if side else 0.12, 0.12), 0, 1))

    def drawn(kind: type[T]) -> T:
        return _Draw(seed, kind.__name__.lower(), masculinity).all(kind)

    eyes, nose, mouth, ears = drawn(Eyes), drawn(Nose), drawn(Mouth), drawn(Ears)
    old, density = max(age - 40, 0) / 40, float(np.clip(eyes.brow_density, 0.4, 1))
    looks = _looks(_Draw(seed, "looks", masculinity))
    return Person(
        seed=seed,
        age=age,
        masculinity=masculinity,
        skull=drawn(Skull),
        eyes=replace(
            eyes,
            height=eyes.height - 0.12 * old,
            tilt=eyes.tilt - 0.05 * old,
            hood=eyes.hood + 0.3 * old,
            bags=eyes.bags + 0.5 * old,
            brow_density=density - 0.2 * old,
        ),
        nose=replace(nose, drop=nose.drop + 0.25 * old, tip_up=nose.tip_up - 0.2 * old),
        mouth=replace(
            mouth,
            upper=max(mouth.upper - 0.2 * old, 0.3),
            lower=max(mouth.lower - 0.2 * old, 0.4),
            lift=mouth.lift - 0.1 * old,
        ),
        ears=replace(ears, size=ears.size + 0.001 * max(age - 40, 0)),
        hair=_hair(_Draw(seed, "hair", masculinity), age, looks.tone),
        looks=looks,
    )


def _hair(draw: _Draw, age: float, tone: float) -> Hair:
    masculine = draw.masculinity > 0.5
    old = float(np.clip((age - 35) / 35, 0, 1))
    coily = float(np.clip((tone - 4.5) / 3, 0, 1))
    if masculine:
        weights = [0.5 + old, 1.0, 1.6 * old, 2.6, 1.6, 1.2, 0.2 + 2 * coily, 0.1, 0.5, 0.25, 0.25]
    else:
        weights = [0.12, 0.2, 0.0, 0.9, 0.35, 1.3, 0.15 + 2.2 * coily, 2.2, 3.0, 1.7, 1.6]
    style = draw.pick(HAIR_STYLES, weights)
    fair = float(np.clip((5.5 - tone) / 4.5, 0, 1))
    colour = draw.pick(
        HAIR_COLOURS[:7], [0.7 + 3.0 * (1 - fair), 1.3, 1.5 * fair, 0.6 * fair, 0.5 * fair, 1.1 * fair, 1.3 * fair]
    )
    grey = float(np.clip((age - 38) / 30 + 0.35 * draw.rng.standard_normal(), 0, 1)) * draw.pick(
        ("1", "0"), [0.7, 0.3]
    ).count("1")
    if grey > 0.5:
        colour = "white" if grey > 0.92 else "grey"
    return Hair(
        style=style,
        colour=colour,
        volume=draw(1.0, 1.0, 0.22),
        length=draw.unit(),
        part=draw(0.0, 0.0, 1.0),
        fringe=draw.unit() if not masculine else 0.0,
        hairline=draw(0.0, 0.25, 0.35) + (0.7 * old if masculine else 0.0),
        wave=draw.unit(),
        grey=grey,
        seed=draw.unit() * 6.0,
        bun_height=draw.unit(),
    )


def _looks(draw: _Draw) -> Looks:
    masculine = draw.masculinity > 0.5
    tone = draw.unit() * 9
    fair = float(np.clip((4.2 - tone) / 4.2, 0, 1))
    return Looks(
        tone=tone,
        warmth=draw(0.0, 0.0, 0.5),
        blush=draw(0.55, 0.4, 0.2),
        freckles=draw.unit() ** 0.5 if draw.unit() < 0.3 * fair + 0.04 else 0.0,
        moles=int(draw.rng.poisson(1.2)),
        eye_colour=draw.pick(EYE_COLOURS, [1.0, 0.8 + 2 * (1 - fair), 0.8 * fair, 0.8 * fair, 1.6 * fair, 0.6 * fair]),
        lip_redness=draw(0.5, 0.35, 0.15),
        makeup=0.0 if masculine else draw.unit() * draw.unit(),
        beard=draw.pick(BEARDS, [2.2, 1.6, 0.6, 0.8, 1.6]) if masculine else "none",
        beard_length=draw.unit(),
        glasses=draw.pick(("none", "round", "square"), [3.0, 0.5, 0.5]),
        glasses_colour=int(draw.rng.integers(5)),
        hat=draw.pick(HATS, [8.0, 0.7, 0.6]),
        garment=draw.pick(GARMENTS, [2.0, 1.3, 0.9, 1.2, 1.0]),
        garment_colour=int(draw.rng.integers(12)),
        hat_colour=int(draw.rng.integers(12)),
    )
