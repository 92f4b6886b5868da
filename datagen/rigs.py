"""View rigs: the cameras that every identity of a dataset is rendered from."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from geometry.directions import FOCAL, RADIUS, wrapped
from manifests.draws import generator
from manifests.errors import UserError


@dataclass(frozen=True)
class Rig:
    """A named list of directions in true degrees, their jitter per identity, and the lens.

    `radius` is the distance of the cameras from the centre of the head in world units, `focal` their focal length in image
    widths.
    """

    id: str
    azimuth: tuple[float, ...]
    elevation: tuple[float, ...]
    azimuth_jitter: float = 0.0
    elevation_jitter: float = 0.0
    elevation_limit: float = 90.0
    radius: float = RADIUS
    focal: float = FOCAL

    def __len__(self) -> int:
        return len(self.azimuth)

    def directions(self, seed: int, identity: int) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
        """Azimuth and elevation of one identity's views; the exact frontal view, where the rig has one, is never jittered."""
        azimuth, elevation = np.array(self.azimuth), np.array(self.elevation)
        if not (self.azimuth_jitter or self.elevation_jitter):
            return azimuth, elevation
        draw = generator(seed, "rig", identity).uniform(-1, 1, (2, len(self)))
        draw[:, (azimuth == 0) & (elevation == 0)] = 0
        azimuth = azimuth + self.azimuth_jitter * draw[0]
        elevation = elevation + self.elevation_jitter * draw[1]
        return wrapped(azimuth), elevation.clip(-self.elevation_limit, self.elevation_limit)

    def document(self) -> dict[str, Any]:
        """The rig as JSON values for a plan; a default lens is left out, as in plans of older versions."""
        defaults = {"radius": RADIUS, "focal": FOCAL}
        return {name: value for name, value in asdict(self).items() if defaults.get(name) != value}


def ring(views: int) -> list[float]:
    """Evenly spaced azimuths in [-180, 180), the front first."""
    return [wrapped(360 * k / views) for k in range(views)]


def _product(id: str, azimuth: list[float], elevation: list[float], **settings: float) -> Rig:
    """Every azimuth at every elevation, ring after ring."""
    return Rig(id, tuple(azimuth * len(elevation)), tuple(e for e in elevation for _ in azimuth), **settings)


FACELIFT_SCALE = 10 / 3
"""Units of FaceLift's world in one of datasets: with it a head (crown to chin) takes half of the image, as in its samples."""
_FACELIFT = {"radius": 2.7 / FACELIFT_SCALE, "focal": 0.5 / math.tan(math.radians(25))}
"""FaceLift's lens: 50 degrees field of view (549 px at 512 px) from 2.7 units of its world."""


RIGS = {
    rig.id: rig
    for rig in (
        # SpinMeRound: 125 views, elevations up to 23 degrees (Fig. 12). Jitter fills the gaps of the grid, whose relative
        # azimuths would otherwise all be multiples of 14.4 degrees and miss the anchors at 45.
        _product(
            "spinmeround-125", ring(25), [-23.0, -11.5, 0.0, 11.5, 23.0],
            azimuth_jitter=7.2, elevation_jitter=5.75, elevation_limit=23.0,
        ),
        _product("gen3dface-48", ring(16), [-30.0, 0.0, 30.0]),
        _product("gen3dface-48-el40", ring(16), [-40.0, 0.0, 40.0]),
        _product("diffportrait360-72", ring(72), [0.0]),
        _product("diffportrait3d-24", [-50.0, -30.0, -10.0, 10.0, 30.0, 50.0], [-18.75, -6.25, 6.25, 18.75]),
        # FaceLift (weijielyu/FaceLift): front, front right, right, back, left, front left, where right is the subject's
        # own; and the 32 cameras of its released sample, which start at the subject's left and go round by the back.
        _product("facelift-6", [0.0, -45.0, -90.0, -180.0, 90.0, 45.0], [0.0], **_FACELIFT),
        _product("facelift-32", [wrapped(90 + 11.25 * k) for k in range(32)], [20.0], **_FACELIFT),
    )
}  # fmt: skip


def _scattered(views: int) -> dict[str, float]:
    """The jitter of views that are drawn evenly around the head, at any elevation up to 30 degrees."""
    return {"azimuth_jitter": 180 / views, "elevation_jitter": 30.0, "elevation_limit": 30.0}


def find_rig(name: str, grid: bool = False) -> Rig:
    """The rig of a name, without its jitter if `grid`; N views are a ring in `orbit-N`, drawn all around in `scatter-N`.

    Raises:
        UserError: there is no such rig.
    """
    kind, _, count = name.partition("-")
    if kind in ("orbit", "scatter") and count.isdecimal() and 1 <= int(count) <= 999:
        views = ring(int(count))
        rig = _product(name, views, [0.0], **(_scattered(len(views)) if kind == "scatter" else {}))
    elif name in RIGS:
        rig = RIGS[name]
    else:
        raise UserError(f"unknown rig {name!r}; there are {', '.join(RIGS)}, orbit-N and scatter-N (N from 1 to 999)")
    return Rig(rig.id, rig.azimuth, rig.elevation, radius=rig.radius, focal=rig.focal) if grid else rig
