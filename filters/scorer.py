"""What a scorer is: pictures of one identity in, numbers about it and its views out. It judges nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, UInt8

from geometry.cameras import Cameras
from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.pictures import decode_picture
from manifests.reader import read_members
from manifests.scores import Lineage

Columns = Mapping[str, Any]
"""By name: one number per view for a column of views, one number for a column of identities."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One identity as a scorer sees it: its row of the identities table and the views that the scorer wants."""

    row: dict[str, Any]
    view: np.ndarray
    azimuth: Float[np.ndarray, " v"]
    elevation: Float[np.ndarray, " v"]
    cameras: Cameras
    pictures: dict[str, list[np.ndarray]]
    """By member (rgb, alpha, normal), the pixels of each view."""

    def member(self, name: str) -> UInt8[np.ndarray, "v h w *c"]:
        return np.stack(self.pictures[name])


@runtime_checkable
class Scorer(Protocol):
    """Numbers about heads. `prepare` runs in threads ahead of `score`, which has the worker's own thread and its device."""

    table: str
    """The table it writes."""
    columns: Sequence[pa.Field]
    members: Sequence[str]
    """What it reads of each view: rgb, alpha, normal."""
    lineage: Lineage

    def wants(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        """The views it reads; its columns are null at the others."""
        ...

    def prepare(self, subject: Subject) -> Any:
        """What can be done on the CPU without the model: crops, resizing, or all of it."""
        ...

    def score(self, prepared: Any) -> Columns:
        """The numbers, from what `prepare` gave."""
        ...


def all_views(azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
    """The `wants` of a scorer that reads every view."""
    return np.ones(len(azimuth), bool)


def make_subject(row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> Subject:
    """A subject of its row, the rows of its views, and their pictures."""
    c2w, K = (np.stack(views.column(name).to_numpy(zero_copy_only=False)) for name in ("c2w", "K"))
    cameras = Cameras(torch.from_numpy(c2w.reshape(-1, 4, 4).copy()), torch.from_numpy(K.reshape(-1, 3, 3).copy()))
    view, azimuth, elevation = (views.column(name).to_numpy() for name in ("view", "azimuth", "elevation"))
    return Subject(row, view, azimuth, elevation, cameras, pictures)


def read_pictures(dataset: Dataset, shard: int, views: pa.Table, member: str) -> list[UInt8[np.ndarray, "h w *c"]]:
    """Decode a member of some views; raises DamagedData naming the view whose picture does not decode."""
    (members,) = read_members(dataset, shard, views, member)
    keys = views.column("key").to_pylist()
    return [_decode(data, key, member) for key, data in zip(keys, members, strict=True)]


def _decode(data: bytes, key: str, member: str) -> UInt8[np.ndarray, "h w *c"]:
    try:
        return decode_picture(data, grey=member == "alpha")
    except ValueError as error:
        raise DamagedData(f"{key}.{member} {error}; spinset repair makes its shard again") from None
