"""Held-out people: views with their true cameras, of a dataset or of a calibrated capture stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from faces.landmarks import face_points
from geometry.cameras import Cameras
from geometry.directions import angular_distance, turned
from infer.evaluation.protocols import EvaluationProtocol
from infer.photo import Photo
from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.embeddings import embeddings_of
from manifests.errors import UserError
from manifests.index import Subset, open_index
from manifests.reader import Reader
from manifests.selection import read_selection
from train.data.sources import PixelSource

MAX_ELEVATION = 30.0
"""Largest absolute elevation, in degrees, of an input view that is drawn at random."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The input view and the targets of one person at one size; pictures in [-1, 1], sRGB over white where known."""

    name: str
    views: tuple[str, ...]
    """The name of each view in its dataset."""
    rgb: Float32[Tensor, "v 3 h w"]
    normal: Float32[Tensor, "v 3 h w"] | None
    """Normals in camera space in [-1, 1], if they are known."""
    alpha: Float32[Tensor, "v h w"] | None
    """The opacity in [0, 1], if it is known."""
    cameras: Cameras
    """The true cameras in the world of datasets: the head at the origin, the face to +z."""
    azimuth: Float32[np.ndarray, " v"]
    elevation: Float32[np.ndarray, " v"]
    points: Float[np.ndarray, "5 3"]
    """World positions of eyes, nose and corners of the mouth."""
    embedding: Float32[np.ndarray, " d"] | None
    """The stored identity embedding of unit length, if a score table was asked for and has one."""

    def __len__(self) -> int:
        return len(self.views)


@runtime_checkable
class HeldOutPerson(Protocol):
    """One identity whose views are not read yet."""

    @property
    def azimuth(self) -> Float32[np.ndarray, " v"]: ...

    @property
    def elevation(self) -> Float32[np.ndarray, " v"]: ...

    def read(self, places: Int64[np.ndarray, " k"]) -> HeldOut:
        """Read some of its views."""
        ...

    def photo(self, place: int) -> Photo:
        """One view as an aligned photo: 8-bit sRGB at its stored size, with the opacity if that is known."""
        ...


@runtime_checkable
class HeldOutPeople(Protocol):
    """The identities that may be measured."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def lineage(self) -> dict[str, Any]:
        """Facts that must be equal when an evaluation is resumed."""
        ...

    def person(self, name: str) -> HeldOutPerson: ...


def choose_people(names: Sequence[str], count: int, seed: int) -> list[str]:
    """The first `count` people of a random order that does not depend on `count`."""
    order = generator(seed, "held-out people").permutation(len(names))
    return [names[int(place)] for place in order[:count]]


def choose_views(
    protocol: EvaluationProtocol,
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
        """Read some of its views; raises DamagedData if one of them cannot be read."""
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

    def photo(self, place: int) -> Photo:
        """One view as an aligned photo; raises BadMember if it cannot be read."""
        people, row = self.people, self.rows[place]
        members = ("rgb", "alpha") if people.subset.index.size["alpha"][row] > 0 else ("rgb",)
        stored = replace(people.pixels, resolution=people.pixels.stored, as_uint8=True)
        found = stored.read(row[None, None], np.ones((1, 3), np.float32), members)
        rgb, name = found["rgb"][0, 0].permute(1, 2, 0).numpy(), people.subset.index.key(int(row))
        return opaque_photo(name, rgb, found["alpha"][0, 0, 0].numpy() if "alpha" in found else None)


def opaque_photo(name: str, rgb: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"] | None) -> Photo:
    """A photo of a picture that lies over white already: opaque wherever the head covers a part of the pixel."""
    covered = np.full(rgb.shape[:2], 255, np.uint8) if alpha is None else np.where(alpha > 0, 255, 0).astype(np.uint8)
    return Photo(name, np.ascontiguousarray(rgb), covered, ())


class StoredPeople:
    """The identities of a dataset, or those that a selection keeps."""

    def __init__(self, url: str, selection: str, embeddings: str, resolution: int):
        """Open a dataset.

        Raises:
            MissingFile: there is no dataset.
            UserError: its pictures are too small or missing, or there is no such selection or score table.
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
        self.pixels = PixelSource(Reader(self.dataset, index), stored, resolution)
        self.table = embeddings
        self.embeddings = embeddings_of(self.dataset, embeddings, self.subset.identities) if embeddings else None
        self.places = {str(identity): place for place, identity in enumerate(self.subset.identities.tolist())}
        self.names: list[str] = list(self.places)
        self._facts = lru_cache(8)(self._facts_of)

    @property
    def lineage(self) -> dict[str, Any]:
        """Fingerprints of the dataset and of the selection, and the name of the score table."""
        selection = self.subset.fingerprint or ""
        return {"dataset": self.subset.index.fingerprint, "selection": selection, "embeddings": self.table}

    @property
    def seeds(self) -> set[int]:
        """The seeds of the heads."""
        return {self.dataset.plan.seed + int(identity) for identity in self.subset.identities}

    @property
    def has_normals(self) -> bool:
        """Whether every view has stored normals."""
        return bool((self.subset.index.size["normal"][self.subset.rows] > 0).all())

    def person(self, name: str) -> StoredPerson:
        return StoredPerson(self, self.places[name])

    def points(self, identity: int) -> Float[np.ndarray, "5 3"]:
        """World positions of the face points of an identity: those that its source recorded, or the average head's."""
        return face_points(self._facts(self.dataset.plan.shard_of(identity)).get(identity))

    def _facts_of(self, shard: int) -> dict[int, str]:
        rows = self.dataset.identities(shard).select(["identity", "facts"]).to_pylist()
        return {row["identity"]: row["facts"] for row in rows}
