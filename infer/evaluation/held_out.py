"""People nobody trained on: their views with the true cameras, from a dataset of ours or from a calibrated stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from faces.landmarks import face_points
from geometry.cameras import Cameras
from geometry.directions import angular_distance, turned
from infer.evaluation import protocols
from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.embeddings import embeddings_of
from manifests.errors import UserError
from manifests.index import Subset, open_index
from manifests.reader import Reader
from manifests.selection import read_selection
from train.data.pixels import Pixels

MAX_ELEVATION = 30.0
"""Degrees above or below within which a random input view lies."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Views of one person at one size; pictures in [-1, 1]."""

    name: str
    views: tuple[str, ...]
    """What each view is called where it comes from."""
    rgb: Float32[Tensor, "v 3 h w"]
    normal: Float32[Tensor, "v 3 h w"] | None
    """In camera space, if they are known."""
    alpha: Float32[Tensor, "v h w"] | None
    """From 0 to 1."""
    cameras: Cameras
    """In the world of datasets: the head at the origin, the face to +z."""
    azimuth: Float32[np.ndarray, " v"]
    elevation: Float32[np.ndarray, " v"]
    points: Float[np.ndarray, "5 3"]
    """Where eyes, nose and corners of the mouth are in that world."""
    embedding: Float32[np.ndarray, " d"] | None
    """Who it is, of unit length, if that is known without looking at the views."""

    def __len__(self) -> int:
        return len(self.views)


@runtime_checkable
class Person(Protocol):
    """One identity whose views are not read yet."""

    @property
    def azimuth(self) -> Float32[np.ndarray, " v"]: ...

    @property
    def elevation(self) -> Float32[np.ndarray, " v"]: ...

    def read(self, places: Int64[np.ndarray, " k"]) -> HeldOut:
        """Some of its views."""
        ...


@runtime_checkable
class People(Protocol):
    """Everyone who may be measured."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def lineage(self) -> dict[str, Any]:
        """What a resumed evaluation must find again."""
        ...

    def person(self, name: str) -> Person: ...


def choose_people(names: Sequence[str], count: int, seed: int) -> list[str]:
    """So many people in a random order that does not depend on their number."""
    order = generator(seed, "held-out people").permutation(len(names))
    return [names[int(place)] for place in order[:count]]


def choose_views(
    protocol: protocols.Protocol,
    azimuth: Float32[np.ndarray, " v"],
    elevation: Float32[np.ndarray, " v"],
    seed: int,
    number: int,
) -> Int64[np.ndarray, " k"]:
    """The places of the input view and of the targets, random by the seed and the number of the identity."""
    rng = generator(seed, "evaluated views", number)
    facing = np.flatnonzero((turned(azimuth) <= protocol.input_turn) & (np.abs(elevation) <= MAX_ELEVATION))
    if protocol.input_turn and len(facing):
        first = int(rng.choice(facing))
    else:
        first = int(angular_distance(azimuth, elevation, 0.0, 0.0).argmin())
    order, turn = rng.permutation(len(azimuth)), turned(azimuth)
    places = [first]
    for targets in protocol.targets:
        fits = (turn[order] > targets.beyond) & (turn[order] <= targets.within) & (order != first)
        places += order[fits][: targets.count].tolist()
    return np.array(places, np.int64)


@dataclass(frozen=True, eq=False)
class StoredPerson:
    """One identity of a dataset."""

    people: "StoredPeople"
    place: int

    @property
    def rows(self) -> Int64[np.ndarray, " v"]:
        return self.people.subset.rows_of(self.place)

    @property
    def azimuth(self) -> Float32[np.ndarray, " v"]:
        return self.people.subset.index.azimuth[self.rows]

    @property
    def elevation(self) -> Float32[np.ndarray, " v"]:
        return self.people.subset.index.elevation[self.rows]

    def read(self, places: Int64[np.ndarray, " k"]) -> HeldOut:
        """Some of its views; raises DamagedData if one of them does not read."""
        index, rows = self.people.subset.index, self.rows[places]
        members = tuple(m for m in ("rgb", "normal", "alpha") if (index.size[m][rows] > 0).all())
        found = self.people.pixels.read(rows[None], np.ones((1, 3), np.float32), members)
        alpha = found.get("alpha")
        embeddings = self.people.embeddings
        embedding = None if embeddings is None else embeddings[self.place]
        return HeldOut(
            str(int(index.identity[rows[0]])),
            tuple(f"v{int(view):03d}" for view in index.view[rows]),
            found["rgb"][0],
            found["normal"][0] if "normal" in found else None,
            None if alpha is None else (alpha[0, :, 0] + 1) / 2,
            Cameras(torch.from_numpy(index.c2w[rows].copy()), torch.from_numpy(index.K[rows].copy())),
            index.azimuth[rows],
            index.elevation[rows],
            self.people.points(int(index.identity[rows[0]])),
            None if embedding is None or np.isnan(embedding).any() else embedding,
        )


class StoredPeople:
    """The identities of a dataset, or those that a selection keeps."""

    def __init__(self, url: str, selection: str, embeddings: str, resolution: int):
        """Open a dataset.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it has smaller pictures than asked for, lacks them, or there is no such selection or table.
        """
        self.dataset = Dataset(url)
        stored = self.dataset.plan.resolution
        if stored < resolution:
            raise UserError(
                f"{url} has {stored} px and the model makes {resolution}; give a dataset of {resolution} px or more"
            )
        index = open_index(self.dataset)
        self.subset: Subset = index.select(read_selection(self.dataset, selection) if selection else None)
        if (lacking := index.size["rgb"][self.subset.rows] == 0).any():
            key = index.key(int(self.subset.rows[lacking.argmax()]))
            raise UserError(f"{url} lacks the rgb of {lacking.sum()} of its views (first: {key})")
        several = np.diff(self.subset.starts) > 1
        if not several.any():
            raise UserError(f"{url} has no identity with two views or more, one to give and one to make")
        self.subset = self.subset.restricted_to(several)
        self.pixels = Pixels(Reader(self.dataset, index), stored, resolution)
        self.table = embeddings
        self.embeddings = embeddings_of(self.dataset, embeddings, self.subset.identities) if embeddings else None
        self.places = {str(identity): place for place, identity in enumerate(self.subset.identities.tolist())}
        self.names: list[str] = list(self.places)
        self._facts = lru_cache(8)(self._facts_of)

    @property
    def lineage(self) -> dict[str, Any]:
        """The dataset and what of it is used."""
        selection = self.subset.fingerprint or ""
        return {"dataset": self.subset.index.fingerprint, "selection": selection, "embeddings": self.table}

    @property
    def seeds(self) -> set[int]:
        """The seeds of the heads."""
        return {self.dataset.plan.seed + int(identity) for identity in self.subset.identities}

    def person(self, name: str) -> StoredPerson:
        return StoredPerson(self, self.places[name])

    def points(self, identity: int) -> Float[np.ndarray, "5 3"]:
        """Where the face of an identity is: as its source tells, the average head's otherwise."""
        return face_points({"facts": self._facts(self.dataset.plan.shard_of(identity)).get(identity)})

    def _facts_of(self, shard: int) -> dict[int, str]:
        rows = self.dataset.identities(shard).select(["identity", "facts"]).to_pylist()
        return {row["identity"]: row["facts"] for row in rows}
