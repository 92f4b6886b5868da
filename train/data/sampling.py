"""Recipes of training samples: which views of an identity, in which order, and which of them are given clean.

A recipe picks positions among the views of an identity, from a generator and their directions (degrees) alone.
Sources: SpinMeRound (section 3 and appendix: 1, 0 or 3 conditioning views, 8 in all); DiffPortrait360 (8 views at a stride
of 2 to 6 on a ring of 5 degrees, front |azimuth| <= 40, back within 35 of 180); Gen3D-Face (16 views of a ring).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from geometry.directions import angular_distance, turned
from manifests.errors import UserError, check_ranges
from manifests.index import Subset

Angles = Float[np.ndarray, " v"]


class Pick(NamedTuple):
    """The views of a sample, by their positions among those of the identity."""

    positions: Int64[np.ndarray, " k"]
    is_condition: Bool[np.ndarray, " k"]


@runtime_checkable
class ViewRecipe(Protocol):
    """Picks the views of a sample; every recipe but SingleView makes one sample per identity and epoch."""

    @property
    def views(self) -> int:
        """Number of views of a sample."""
        ...

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        """The reason why an identity with these views cannot be sampled; empty if it can."""
        ...

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick: ...


@dataclass(frozen=True)
class SingleView:
    """Every view is a sample of its own; for phase A of SpinMeRound."""

    @property
    def views(self) -> int:
        return 1

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        return ""

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        return _targets(np.array([rng.integers(len(azimuth))]))


@dataclass(frozen=True)
class MultiView:
    """Samples of SpinMeRound: a random number of given views, then the target views."""

    views: int = 8
    """Number of views of a sample, given ones included."""
    conditions: tuple[int, ...] = (0, 1, 3)
    """Numbers of given views, which are equally likely."""
    max_turn: float = 60.0
    """Largest azimuth of the first given view, in degrees from the front."""
    max_elevation: float = 30.0
    """Largest elevation of the first given view above or below the horizon, in degrees."""
    nearest: bool = False
    """Take the views nearest to a given view (or, without one, to a random view) as targets, instead of random views."""

    def __post_init__(self) -> None:
        check_ranges(self, "--loader.recipe.", views=(1, 1000), max_turn=(0, 180), max_elevation=(0, 90))
        check_ranges(self, "--loader.recipe.", conditions=(0, self.views - 1))
        if not self.conditions:
            raise UserError("--loader.recipe.conditions is empty; give the numbers of given views, such as 0 1 3")

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        if max(self.conditions) and not self._faces(azimuth, elevation).any():
            return f"has no view turned at most {self.max_turn:g} degrees, within {self.max_elevation:g} of elevation"
        return _fewer_than(self.views, azimuth)

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        count = int(rng.choice(self.conditions))
        order = rng.permutation(len(azimuth))
        if count:
            first = rng.choice(np.flatnonzero(self._faces(azimuth, elevation)))
            order = np.concatenate([[first], order[order != first]])
        if self.nearest:
            given = order[: max(count, 1)].tolist()
            away = np.min(
                [angular_distance(azimuth, elevation, float(azimuth[g]), float(elevation[g])) for g in given], 0
            )
            order[count:] = order[count:][np.argsort(away[order[count:]], kind="stable")]
        return Pick(order[: self.views], np.arange(self.views) < count)

    def _faces(self, azimuth: Angles, elevation: Angles) -> Bool[np.ndarray, " v"]:
        return (turned(azimuth) <= self.max_turn) & (np.abs(elevation) <= self.max_elevation)


@dataclass(frozen=True)
class RandomK:
    """Random views of an identity, none of them twice."""

    views: int = 8

    def __post_init__(self) -> None:
        _check_views(self.views)

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        return _fewer_than(self.views, azimuth)

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        return _targets(rng.permutation(len(azimuth))[: self.views])


@dataclass(frozen=True)
class Arc:
    """Consecutive views along a ring at a drawn stride, from a drawn start, within one turn."""

    views: int = 8
    strides: tuple[int, int] = (2, 6)
    """Smallest and largest stride; all between them are equally likely, as far as the ring has enough views."""
    reverse: bool = False
    """Whether half of the arcs run towards falling azimuth."""
    elevation: float = 0.0
    band: float = 6.0
    """Largest difference of a view of the ring from the elevation, in degrees."""

    def __post_init__(self) -> None:
        _check_views(self.views)
        if not 1 <= self.strides[0] <= self.strides[1]:
            raise UserError(f"strides are {self.strides}; give the smallest and the largest, 1 or more")

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        ring, needed = len(self._ring(azimuth, elevation)), (self.views - 1) * self.strides[0] + 1
        at = f"within {self.band:g} degrees of elevation {self.elevation:g}"
        return f"has {ring} views {at}, an arc needs {needed}" if ring < needed else ""

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        ring = self._ring(azimuth, elevation)
        most = min(self.strides[1], (len(ring) - 1) // max(self.views - 1, 1))
        stride, start = rng.integers(self.strides[0], most + 1), rng.integers(len(ring))
        sign = -1 if self.reverse and rng.random() < 0.5 else 1
        return _targets(ring[(start + sign * stride * np.arange(self.views)) % len(ring)])

    def _ring(self, azimuth: Angles, elevation: Angles) -> Int64[np.ndarray, " r"]:
        """The positions of the views of the ring, by rising azimuth."""
        level = np.flatnonzero(np.abs(elevation - self.elevation) <= self.band)
        return level[np.argsort(azimuth[level], kind="stable")]


@dataclass(frozen=True)
class FrontBack:
    """A view of the front as the condition, and the view of the back that is farthest from it and overlaps it least."""

    max_turn: float = 40.0
    """Largest absolute azimuth of a view of the front, in degrees."""
    min_turn: float = 145.0
    """Smallest absolute azimuth of a view of the back, in degrees."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_turn < self.min_turn <= 180:
            raise UserError(
                f"the front ends at {self.max_turn:g} degrees and the back begins at {self.min_turn:g}; "
                "the front must end before the back begins, within 180"
            )

    @property
    def views(self) -> int:
        return 2

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        if not (turned(azimuth) <= self.max_turn).any():
            return f"has no view turned at most {self.max_turn:g} degrees"
        return "" if (turned(azimuth) >= self.min_turn).any() else f"has no view turned {self.min_turn:g} degrees"

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        turn = turned(azimuth)
        front = int(rng.choice(np.flatnonzero(turn <= self.max_turn)))
        back = np.flatnonzero(turn >= self.min_turn)
        away = angular_distance(azimuth[back], elevation[back], azimuth[front], elevation[front])
        return Pick(np.array([front, back[away.argmax()]]), np.array([True, False]))


@dataclass(frozen=True)
class Portraits:
    """Samples of the DiffPortrait family: references of the person, then the views that are generated.

    The references are drawn from the front and, for DiffPortrait360, from the back, independently of each other and of the
    views, so that a reference may be one of the generated views. Sources: DiffPortrait360, section 4.1 (references are not at 0
    and 180 degrees exactly), and its released loader.
    """

    count: int = 8
    """Number of views that are generated."""
    targets: Literal["arc", "random", "back"] = "arc"
    """Views that are generated: arc is consecutive ones along the ring, random is any, back is those of the back."""
    back: bool = True
    """Whether a second reference shows the back."""
    max_turn: float = 40.0
    """Largest absolute azimuth of a reference of the front, in degrees."""
    min_turn: float = 145.0
    """Smallest absolute azimuth of a view of the back, in degrees."""
    strides: tuple[int, int] = (2, 6)
    """Smallest and largest stride of an arc."""
    reverse: bool = False
    """Whether half of the arcs run towards falling azimuth, unlike the released ones."""

    def __post_init__(self) -> None:
        check_ranges(self, "--loader.recipe.", count=(1, 1000), max_turn=(0, 180), min_turn=(0, 180), strides=(1, 360))
        if self.targets not in ("arc", "random", "back"):
            raise UserError(f"--loader.recipe.targets is {self.targets!r}; it must be arc, random or back")

    @property
    def references(self) -> int:
        """Number of references, which come first."""
        return 1 + self.back

    @property
    def views(self) -> int:
        return self.references + self.count

    @property
    def conditions(self) -> tuple[int, ...]:
        """Numbers of given views."""
        return (self.references,)

    @property
    def turns(self) -> tuple[tuple[float, float], ...]:
        """Range of the turn of each reference from the front, in degrees."""
        return ((0.0, self.max_turn), (self.min_turn, 180.0))[: self.references]

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        if not (turned(azimuth) <= self.max_turn).any():
            return f"has no view turned at most {self.max_turn:g} degrees"
        behind = azimuth[turned(azimuth) >= self.min_turn]
        if (self.back or self.targets == "back") and not len(behind):
            return f"has no view turned {self.min_turn:g} degrees"
        if self.targets == "arc":
            return self._arc.lacks(azimuth, elevation)
        return _fewer_than(self.count, azimuth if self.targets == "random" else behind)

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        turn = turned(azimuth)
        behind = np.flatnonzero(turn >= self.min_turn)
        lists = [np.flatnonzero(turn <= self.max_turn), *([behind] if self.back else [])]
        references = [int(rng.choice(one)) for one in lists]
        if self.targets == "arc":
            views = self._arc.pick(rng, azimuth, elevation).positions
        else:
            views = rng.permutation(behind if self.targets == "back" else len(azimuth))[: self.count]
        positions = np.concatenate([references, views]).astype(np.int64)
        return Pick(positions, np.arange(len(positions)) < self.references)

    @property
    def _arc(self) -> Arc:
        return Arc(self.count, self.strides, self.reverse)


@dataclass(frozen=True)
class Anchors:
    """The views nearest to fixed azimuths at one elevation; the first of them are conditions."""

    azimuths: tuple[float, ...] = (0.0, 45.0, -45.0, 90.0, -90.0, 135.0, -135.0, 180.0)
    elevation: float = 0.0
    within: float = 15.0
    """Largest angle between a view and its anchor, in degrees."""
    given: int = 1
    """Number of conditioning views, which come first."""

    def __post_init__(self) -> None:
        _check_views(self.views)
        if not 0 <= self.given < self.views:
            raise UserError(f"{self.given} of {self.views} anchors are conditions; at least one must be a target")

    @property
    def views(self) -> int:
        return len(self.azimuths)

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        positions, away = self._nearest(azimuth, elevation)
        if (far := away > self.within).any():
            at = self.azimuths[int(far.argmax())]
            return f"has no view within {self.within:g} degrees of azimuth {at:g}, elevation {self.elevation:g}"
        return "" if len(set(positions.tolist())) == self.views else "has one view that is nearest to two anchors"

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        return Pick(self._nearest(azimuth, elevation)[0], np.arange(self.views) < self.given)

    def _nearest(self, azimuth: Angles, elevation: Angles) -> tuple[Int64[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        away = np.stack([angular_distance(azimuth, elevation, a, self.elevation) for a in self.azimuths])
        return away.argmin(1), away.min(1)


@dataclass(frozen=True)
class Ring:
    """Views evenly spaced around the head, beginning at the front; none of them is a condition."""

    views: int = 16
    elevation: float = 0.0
    within: float = 15.0
    """Largest angle between a view and its direction on the ring, in degrees."""

    def __post_init__(self) -> None:
        _check_views(self.views)

    def lacks(self, azimuth: Angles, elevation: Angles) -> str:
        return self._anchors.lacks(azimuth, elevation)

    def pick(self, rng: np.random.Generator, azimuth: Angles, elevation: Angles) -> Pick:
        return self._anchors.pick(rng, azimuth, elevation)

    @property
    def _anchors(self) -> Anchors:
        return Anchors(tuple(360 * k / self.views for k in range(self.views)), self.elevation, self.within, given=0)


@dataclass(frozen=True, eq=False)
class Control:
    """Identities with all views of a grid rig, so that equal view numbers have equal directions."""

    subset: Subset
    positions: Int64[np.ndarray, " i"]
    seed: int
    """The seed of the dataset; heads of one source are equal if the sums of seed and identity are."""

    def rows(self, rng: np.random.Generator, head: int, view: Int[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """The rows of the same views of an identity that is drawn; it is not the one of the seed `head`."""
        others = self.positions[self.subset.identities[self.positions] + self.seed != head]
        return self.subset.rows_of(int(rng.choice(others)))[np.asarray(view, np.int64)]


def open_control(subset: Subset, rig: dict[str, Any], seed: int = 0) -> Control:
    """Find the identities of a subset that can be joined by view number; `seed` is that of its dataset.

    Raises:
        UserError: the rig is jittered, or fewer than two identities have all their views.
    """
    if not rig.get("grid") and (rig.get("azimuth_jitter") or rig.get("elevation_jitter")):
        raise UserError(
            f"rig {rig['id']} is jittered, so views of equal index look from elsewhere; generate with --grid to join them"
        )
    whole = len(rig["azimuth"])
    positions = np.flatnonzero(np.diff(subset.starts) == whole)
    if len(positions) < 2:
        raise UserError(
            f"{len(positions)} of {len(subset.identities)} identities have all {whole} views of rig {rig['id']}; "
            "control images need two"
        )
    return Control(subset, positions, seed)


def unable(recipe: ViewRecipe, subset: Subset) -> dict[int, str]:
    """The positions of the identities that a recipe cannot sample, with the reasons."""
    if isinstance(recipe, SingleView):
        return {}
    azimuth, elevation = subset.index.azimuth[subset.rows], subset.index.elevation[subset.rows]
    runs = zip(subset.starts[:-1].tolist(), subset.starts[1:].tolist(), strict=True)
    reasons = (recipe.lacks(azimuth[a:b], elevation[a:b]) for a, b in runs)
    return {position: reason for position, reason in enumerate(reasons) if reason}


def samples(recipe: ViewRecipe, subset: Subset) -> int:
    """Number of samples of an epoch: views for SingleView, otherwise identities."""
    return len(subset.rows) if isinstance(recipe, SingleView) else len(subset.starts) - 1


def _targets(positions: Int[np.ndarray, " k"]) -> Pick:
    return Pick(positions.astype(np.int64), np.zeros(len(positions), bool))


def _fewer_than(views: int, azimuth: Angles) -> str:
    return f"has {len(azimuth)} views, a sample needs {views}" if len(azimuth) < views else ""


def _check_views(views: int) -> None:
    if views < 1:
        raise UserError(f"views are {views}; a sample needs 1 or more")
