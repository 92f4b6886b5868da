"""Which views are made from which: anchors around the head first, everything else between them.

Source: SpinMeRound, section 3.4 (two stages: seven anchors from the input, then five views at a time from the input and
the two nearest anchors). Directions are relative to the input in true degrees. Where the paper is silent: a sector that
touches the input takes the two anchors nearest to its middle beside it, the more frontal of two that are equally near.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from geometry.directions import turned
from manifests.errors import UserError

ANCHORS = (45.0, -45.0, 90.0, -90.0, 135.0, -135.0, 180.0)
SECTOR = 45.0
AT_ONCE = 5
"""Views made in one call of the second stage, which with three given ones are the eight the model is trained on."""


@dataclass(frozen=True)
class Call:
    """One run of the sampler: places of views that are given, the first of them the reference, and that are made."""

    given: tuple[int, ...]
    made: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Directions of all views that are needed, the input first and then the anchors, and the calls that make them."""

    azimuth: Float[np.ndarray, " v"]
    elevation: Float[np.ndarray, " v"]
    calls: tuple[Call, ...]
    wanted: tuple[int, ...]
    """Places of the views that were asked for, in their order."""


def ring(views: int) -> Float[np.ndarray, " v"]:
    """Azimuths evenly spaced around the head from the front on; 48, 88 and 128 fill whole calls (8 + 8 times 5, 10, 15)."""
    return np.arange(views) * 360.0 / views


def plan_views(azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"], photos: int = 1) -> Plan:
    """How to make views in any directions from one photo (or none: the first view then takes its place).

    Raises:
        ValueError: no views are asked for, or one from straight above or below.
    """
    if len(azimuth) == 0:
        raise UserError("no views are asked for; give at least one azimuth")
    if np.abs(elevation).max() >= 90:
        raise UserError(f"elevation {elevation[np.abs(elevation).argmax()]:g} has no upright view; stay within 90")
    azimuth = (azimuth + 180) % 360 - 180
    base = np.array([0.0, *ANCHORS])
    directions = [(float(a), 0.0) for a in base]
    at_base = {(_key(a), 0.0): place for place, a in enumerate(base.tolist())}
    wanted: list[int] = []
    sectors: dict[int, list[int]] = {}
    for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True):
        place = at_base.get((_key(a), round(e, 6)))
        if place is None:
            place = len(directions)
            directions.append((a, e))
            at_base[_key(a), round(e, 6)] = place
            sectors.setdefault(int(np.floor(a / SECTOR)), []).append(place)
        wanted.append(place)
    first = Call((0,), tuple(range(1, len(base)))) if photos else Call((), tuple(range(len(base))))
    calls = [first]
    for sector, places in sorted(sectors.items()):
        given = (0, *nearest_anchors((sector + 0.5) * SECTOR))
        calls += [Call(given, tuple(places[i : i + AT_ONCE])) for i in range(0, len(places), AT_ONCE)]
    found = np.array(directions)
    return Plan(found[:, 0], found[:, 1], tuple(calls), tuple(wanted))


def nearest_anchors(azimuth: float) -> tuple[int, int]:
    """Places of the two anchors nearest to a direction; of two that are equally near, the more frontal."""
    anchors = np.array(ANCHORS)
    away = turned(anchors - azimuth)
    order = np.lexsort((anchors, turned(anchors), away.round(6)))
    return int(order[0]) + 1, int(order[1]) + 1


def _key(azimuth: float) -> float:
    return round((azimuth + 180) % 360 - 180, 6) % 360
