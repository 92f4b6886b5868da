"""A person as a model: which layers, where they lie, how finely each is meshed."""

from functools import partial

from datagen.sources.procedural import anatomy, beard, hair, materials, wear
from datagen.sources.procedural.anatomy import BUST_FLOOR, EYE
from datagen.sources.procedural.model import Detail, Layer, Model
from datagen.sources.procedural.person import Person
from datagen.sources.procedural.sdf import Vec


def build_model(person: Person) -> Model:
    """The layers of a person."""
    top = EYE + person.skull.height + 1.0
    floor = BUST_FLOOR - 0.6

    face = Detail((-6.2, EYE - 9.6, 4.4), (6.2, EYE + 3.6, 13.4), 0.16)

    def layer(
        name: str, low: Vec, high: Vec, spacing: float, distance, material, detail: Detail | None = None
    ) -> Layer:
        return Layer(
            name, low, high, spacing, partial(distance, person=person), partial(material, person=person), detail
        )

    layers = [
        layer("skin", (-22, floor, -14), (22, top, 13.5), 0.29, anatomy.body, materials.skin, face),
        layer("eyes", (-5.4, -1.6, 4), (5.4, 3, 8.4), 0.2, anatomy.eyeballs, materials.eyes),
        layer(
            "garment",
            (-24, floor, -14),
            (24, -8, 7),
            0.36 if person.looks.garment == "shirt" else 0.45,
            wear.garment,
            materials.garment,
        ),
    ]
    if person.hair.style != "bald":
        layers.append(layer("hair", (-15, -22.5, -18), (15, top + 7, 13), 0.33, hair.hair_distance, materials.hair))
    if person.looks.beard not in ("none", "stubble"):
        layers.append(layer("beard", (-8, -14, -2), (8, 1.5, 13), 0.26, beard.beard_distance, materials.beard))
    if person.looks.glasses != "none":
        layers.append(layer("glasses", (-9, -4, -3), (9, 5, 11.5), 0.16, wear.glasses, materials.glasses))
    if person.looks.hat != "none":
        layers.append(layer("hat", (-13, -1, -15), (13, top + 2.5, 17), 0.3, wear.hat, materials.hat))
    return tuple(layers)
