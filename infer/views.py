"""View plans, and the views that are sampled by them.

Two stages: seven anchors around the head are sampled from the photo, then all other views, five at a time, from the photo and
the two nearest anchors. Directions are in degrees; azimuths are relative to the first photo, positive towards the subject's
left. Source: SpinMeRound, section 3.4. Where the paper is silent: a sector that touches the photo takes the two anchors nearest
to its middle beside it, the more frontal of two that are equally near.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from geometry.cameras import Cameras, from_view_rotation, orbit, spinmeround_rotation
from geometry.directions import turned, wrapped
from manifests.errors import UserError

ANCHORS = (45.0, -45.0, 90.0, -90.0, 135.0, -135.0, 180.0)
"""Azimuths of the anchors. Source: SpinMeRound, section 3.4."""
SECTOR = 45.0
"""Width of the sectors between anchors, in degrees; views of one sector share their two anchors."""
SECOND_STAGE_VIEWS = 5
"""Views per call of the second stage, which with three given ones are the eight that models are trained on."""
ONE_STAGE_VIEWS = 7
"""Views per call where all are sampled from the photo alone; with it they are eight, too."""


@dataclass(frozen=True, eq=False)
class HeadViews:
    """v views of one head in the order in which they were asked for: sRGB over white, normals over grey, both in [-1, 1]."""

    rgb: Float32[Tensor, "v 3 h w"]
    normal: Float32[Tensor, "v 3 h w"] | None
    """Unit normals in camera space, or None if the model makes none."""
    azimuth: Float32[np.ndarray, " v"]
    """Azimuths in degrees from the first photo, or from the front if there is none."""
    elevation: Float32[np.ndarray, " v"]
    """Elevations in degrees."""
    is_given: Bool[np.ndarray, " v"]
    """Whether a view is one of the photos."""
    cameras: Cameras
    """The cameras of the views."""

    def __len__(self) -> int:
        return len(self.azimuth)

    @property
    def resolution(self) -> int:
        return self.rgb.shape[-1]


def to_bytes(pictures: Float32[Tensor, "*v 3 h w"]) -> UInt8[np.ndarray, "*v h w 3"]:
    """Pictures in [-1, 1] as 8-bit pixels with channels last."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).cpu().numpy()


def from_bytes(pixels: UInt8[np.ndarray, "*v h w 3"]) -> Float32[Tensor, "*v 3 h w"]:
    """8-bit pixels with channels last as pictures in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1


@dataclass(frozen=True)
class SamplerCall:
    """One run of the sampler, by positions in the plan: given views, of which the first is the reference, and sampled ones."""

    given: tuple[int, ...]
    sampled: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ViewPlan:
    """Directions and cameras of the n views that are needed, the first photo at position 0, and the calls that sample them."""

    azimuth: Float[np.ndarray, " n"]
    """Azimuths in degrees from the first photo, within [-180, 180)."""
    elevation: Float[np.ndarray, " n"]
    """Elevations in degrees."""
    cameras: Cameras
    """The camera of each view; only its rotation against the reference's matters."""
    photos: tuple[int, ...]
    """Positions of the photos, in their order."""
    calls: tuple[SamplerCall, ...]
    """The calls, in an order in which every view is sampled before it is given."""
    wanted: tuple[int, ...]
    """Positions of the views that were asked for, in their order."""

    @property
    def call_numbers(self) -> Int[np.ndarray, " v"]:
        """The number of the call that samples each wanted view; -1 for photos."""
        numbers = {position: number for number, call in enumerate(self.calls) for position in call.sampled}
        return np.array([numbers.get(position, -1) for position in self.wanted])


def ring(views: int) -> Float[np.ndarray, " v"]:
    """Azimuths evenly spaced around the head from the front on; 48, 88 and 128 fill whole calls (8 + 8 times 5, 10, 15)."""
    return np.arange(views) * 360.0 / views


def plan_views(
    azimuth: Float[np.ndarray, " v"],
    elevation: Float[np.ndarray, " v"],
    photos: Sequence[float] = (0.0,),
    photo_elevation: float = 0.0,
    stages: int = 2,
    angles: Literal["orbit", "spinmeround"] = "orbit",
) -> ViewPlan:
    """Plan how views in any directions are sampled.

    `photos` are the azimuths of the photos, the first of them 0, all at `photo_elevation`; without photos the front is sampled
    together with the anchors. With one stage all views are sampled from the photos alone, without anchors. `angles` says
    whether directions are those of cameras on an orbit, or yaw and pitch of the head (see `spinmeround_rotation`).

    Raises:
        UserError: no views are asked for, one is seen from straight above or below, or two photos share a direction.
    """
    if len(azimuth) == 0:
        raise UserError("no views are asked for; give at least one azimuth")
    if np.abs(elevation).max() >= 90:
        raise UserError(f"elevation {elevation[np.abs(elevation).argmax()]:g} has no upright view; stay within 90")
    base = [0.0, *ANCHORS] if stages == 2 else [0.0]
    directions: list[tuple[float, float]] = []
    positions: dict[tuple[float, float], int] = {}

    def position_of(a: float, e: float) -> int:
        """The position of a direction, which is added if it is new; equal ones differ by less than a millionth of a degree."""
        key = round(wrapped(a), 6) % 360, round(e, 6)
        if key not in positions:
            positions[key] = len(directions)
            directions.append((a, e))
        return positions[key]

    for a in base:
        position_of(a, photo_elevation)
    wanted = [position_of(wrapped(a), e) for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True)]
    given: list[int] = []
    for a in map(wrapped, photos):
        if (position := position_of(a, photo_elevation)) in given:
            raise UserError(f"two photos are turned by {a:g} degrees; give each its own side")
        given.append(position)
    further = [position for position in dict.fromkeys(wanted) if position >= len(base)]
    if stages == 2:
        calls = [SamplerCall(tuple(given), tuple(range(len(base)))), *_between_anchors(directions, further)]
    else:
        missing = [position for position in dict.fromkeys(wanted) if position not in given]
        groups = np.array_split(missing, -(-len(missing) // ONE_STAGE_VIEWS) or 1)
        calls = [SamplerCall(tuple(given), tuple(group.tolist())) for group in groups]
    calls = [SamplerCall(call.given, tuple(p for p in call.sampled if p not in given)) for call in calls]
    a, e = np.array(directions).T
    if angles == "orbit":
        cameras = orbit(a, e)
    else:
        yaw, pitch = torch.tensor(a), torch.tensor(e)
        cameras = from_view_rotation(spinmeround_rotation(pitch, yaw, torch.zeros_like(yaw)).float())
    return ViewPlan(a, e, cameras, tuple(given), tuple(call for call in calls if call.sampled), tuple(wanted))


def _between_anchors(directions: list[tuple[float, float]], positions: list[int]) -> list[SamplerCall]:
    """Calls of the second stage, sector by sector."""
    sectors: dict[int, list[int]] = {}
    for position in positions:
        sectors.setdefault(int(np.floor(directions[position][0] / SECTOR)), []).append(position)
    return [
        SamplerCall((0, *nearest_anchors((sector + 0.5) * SECTOR)), tuple(members[i : i + SECOND_STAGE_VIEWS]))
        for sector, members in sorted(sectors.items())
        for i in range(0, len(members), SECOND_STAGE_VIEWS)
    ]


def nearest_anchors(azimuth: float) -> tuple[int, int]:
    """Positions in a plan of the two anchors nearest to an azimuth; of two that are equally near, the more frontal."""
    anchors = np.array(ANCHORS)
    order = np.lexsort((anchors, turned(anchors), turned(anchors - azimuth).round(6)))
    return int(order[0]) + 1, int(order[1]) + 1
