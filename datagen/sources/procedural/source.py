"""The procedural head source: people drawn from seeds, with their density fields and pictures."""

import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from datagen.config import ProceduralConfig, SourceConfig
from datagen.heads import RenderedViews
from datagen.sources.procedural.anatomy import landmarks
from datagen.sources.procedural.defects import plant
from datagen.sources.procedural.field import ISO_LEVEL, density_field
from datagen.sources.procedural.haze import veil
from datagen.sources.procedural.lighting import bake_visibility
from datagen.sources.procedural.materials import CLOTH_NAMES
from datagen.sources.procedural.people import build_model
from datagen.sources.procedural.person import Person, draw_person
from datagen.sources.procedural.render import render_views
from datagen.sources.procedural.surface import build_surface
from geometry.cameras import Cameras
from manifests.draws import MAX_SEED
from manifests.errors import UserError

VERSION = 1
"""Raised whenever the same seed would give another head."""


class ProceduralHead:
    """One person, clean or with planted defects; works on the CPU."""

    iso_level, device = ISO_LEVEL, torch.device("cpu")

    def __init__(self, seed: int, config: ProceduralConfig):
        self.person = draw_person(seed)
        with torch.no_grad():
            self._model, self._fog, self._defects = plant(
                build_model(self.person), seed, config.defect_rate, config.defects
            )

    @torch.no_grad()
    def density(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Density at world points: linear in signed distance within 0.05 of the surface, constant beyond."""
        return self._field.density(points)

    @torch.no_grad()
    def render(self, cameras: Cameras, resolution: int) -> RenderedViews:
        """Views over white; the first call prepares the surface and its light."""
        views = render_views(*self._lit_surface, cameras, resolution)
        for haze in self._fog:
            views = veil(views, cameras, haze)
        return views

    def facts(self) -> dict[str, Any]:
        """Attributes, five landmarks (world; left is the subject's own) and the defects that were planted."""
        drawn = json.dumps(self.person.parameters(), sort_keys=True).encode()
        return {
            "latent_sha256": hashlib.sha256(drawn).hexdigest(),
            **attributes(self.person),
            "landmarks": landmarks(self.person),
            "defects": self._defects,
        }

    @cached_property
    def _field(self):
        return density_field(self._model)

    @cached_property
    def _lit_surface(self):
        surface = build_surface(self._model)
        return surface, bake_visibility(surface)


def attributes(person: Person) -> dict[str, Any]:
    """The attributes of a person, as plain values for captions and labels."""
    looks = person.looks
    return {
        "seed": person.seed,
        "age": round(person.age, 1),
        "masculinity": round(person.masculinity, 3),
        "skin_tone": round(looks.tone, 2),
        "hair_style": person.hair.style,
        "hair_colour": person.hair.colour,
        "eye_colour": looks.eye_colour,
        "beard": looks.beard,
        "glasses": looks.glasses,
        "hat": looks.hat,
        "garment": looks.garment,
        "garment_colour": CLOTH_NAMES[looks.garment_colour],
        "hat_colour": CLOTH_NAMES[looks.hat_colour],
        "freckles": round(looks.freckles, 3),
        "parameters": person.parameters(),
    }


class ProceduralSource:
    """The generator of procedural heads."""

    name, max_seed = "procedural", MAX_SEED

    def __init__(self, config: ProceduralConfig | None = None):
        self.config = config or ProceduralConfig()

    def head(self, seed: int) -> ProceduralHead:
        """The head of a seed; the same person with and without defects. Raises ValueError if the seed is negative."""
        if seed < 0:
            raise UserError(f"seed is {seed}; seeds are integers from 0")
        return ProceduralHead(seed, self.config)

    def lineage(self) -> dict[str, Any]:
        """Version and settings; there are no weights."""
        return {
            "version": VERSION,
            "config": asdict(self.config),
            "weights_sha256": None,
            "licence": "as this repository; knows procedural heads only",
        }


def open_source(config: SourceConfig, device: str) -> ProceduralSource:
    """The source with its settings; it computes on the CPU whatever the device is."""
    return ProceduralSource(config.procedural)


def recorded_config(recorded: dict[str, Any], weights: str) -> SourceConfig:
    """The settings of a source from what a plan records of it; it has no weights."""
    own = recorded["config"]
    return SourceConfig("procedural", procedural=ProceduralConfig(**{**own, "defects": tuple(own["defects"])}))
