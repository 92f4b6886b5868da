"""Turns a request for samples into arrays: what every worker of the loader does, without state of its own."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset as Requests

from manifests.draws import generator
from manifests.errors import DamagedData
from manifests.index import Subset
from manifests.order import GlobalBatch
from train.batch import Batch, Key, Source
from train.data.sampling import Control, Recipe, SingleView, samples

RETRIES = 64
"""How often a batch is read again for each bad member that a run tolerates."""


class Bad(NamedTuple):
    """A member that could not be had."""

    shard: str
    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, {self.member}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Delivery:
    """A batch on its way out of a worker: tensors for what is large, arrays for what is not worth a shared file."""

    numbers: dict[str, np.ndarray]
    contents: dict[str, Any]
    bad: tuple[Bad, ...]
    """Members that could not be had, whose samples were replaced."""

    def batch(self) -> Batch:
        numbers = {name: torch.from_numpy(array) for name, array in self.numbers.items()}
        return Batch(**{**numbers, **self.contents})  # a source may know better, such as what the background is

    def pin_memory(self) -> "Delivery":
        pinned = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in self.contents.items()}
        return replace(self, contents=pinned)


@dataclass(frozen=True, eq=False)
class Views:
    """Which views serve a request."""

    rows: Int64[np.ndarray, "b v"]
    is_condition: Bool[np.ndarray, "b v"]
    control: Int64[np.ndarray, "b v"] | None
    background: Float32[np.ndarray, "b 3"]
    keys: list[Key]


@dataclass(frozen=True, eq=False)
class Worker(Requests):
    """All that a worker must know; a sample depends on the seed, its epoch and its number alone."""

    subset: Subset
    recipe: Recipe
    source: Source
    members: tuple[str, ...]
    seed: int
    random_background: float
    control: Control | None
    embeddings: Float32[np.ndarray, "i d"] | None
    """Of the identities of the subset."""
    tolerance: int

    def __getitem__(self, request: GlobalBatch) -> Delivery | Exception:
        """The batch, or the error that stops the run: raised here, torch would bury it in a traceback."""
        try:
            return self.serve(request)
        except (ValueError, OSError) as error:
            return error

    def serve(self, request: GlobalBatch) -> Delivery:
        """The batch; a sample with a bad member is replaced by the one of the next number, up to the tolerance."""
        numbers, repeated, bad = request.samples.copy(), request.repeated.copy(), []
        while True:
            views = self.views(numbers, request.epochs)
            try:
                contents = self._read(views)
                break
            except DamagedData as error:
                bad.append(Bad(error.file, error.member, error.problem))
                # Replacements may meet a bad member again, but not forever.
                if len(set(bad)) > self.tolerance or len(bad) > self.tolerance * RETRIES:
                    raise
                hit = (views.rows == error.row).any(1)
                if views.control is not None:
                    hit |= (views.control == error.row).any(1)
                numbers[hit] = (numbers[hit] + 1) % samples(self.recipe, self.subset)
                repeated |= hit
        return Delivery(self._numbers(numbers, repeated, views), contents, tuple(dict.fromkeys(bad)))

    def shard_of(self, numbers: Int64[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """The shard in which each sample lies."""
        firsts = numbers if isinstance(self.recipe, SingleView) else self.subset.starts[numbers]
        return self.subset.index.shard[self.subset.rows[firsts]]

    def views(self, numbers: Int64[np.ndarray, " b"], epochs: Int64[np.ndarray, " b"]) -> Views:
        """Draw the views of some samples."""
        keys = list(zip(epochs.tolist(), numbers.tolist(), strict=True))
        background = np.ones((len(numbers), 3), np.float32)
        if self.random_background:
            for colour, key in zip(background, keys, strict=True):
                rng = generator(self.seed, "background", *key)
                if rng.random() < self.random_background:
                    colour[:] = rng.integers(0, 256, 3) / 255
        if isinstance(self.recipe, SingleView):
            rows = self.subset.rows[numbers][:, None]
            is_condition = np.zeros(rows.shape, bool)
        else:
            rows, is_condition = (np.stack(parts) for parts in zip(*map(self._pick, keys), strict=True))
        return Views(rows, is_condition, self._control(rows, keys), background, [(self.seed, *key) for key in keys])

    def _pick(self, key: tuple[int, int]) -> tuple[Int64[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
        own, index = self.subset.rows_of(key[1]), self.subset.index
        pick = self.recipe.pick(generator(self.seed, "sample", *key), index.azimuth[own], index.elevation[own])
        return own[pick.places], pick.is_condition

    def _control(self, rows: Int64[np.ndarray, "b v"], keys: list[tuple[int, int]]) -> Int64[np.ndarray, "b v"] | None:
        if self.control is None:
            return None
        identity, view = self.subset.index.identity[rows[:, 0]], self.subset.index.view[rows]
        joined = zip(keys, identity.tolist(), view, strict=True)
        return np.stack([self.control.rows(generator(self.seed, "control", *k), i, v) for k, i, v in joined])

    def _read(self, views: Views) -> dict[str, Any]:
        contents = self.source.read(views.rows, views.background, self.members, views.keys)
        if views.control is not None:
            white = np.ones_like(views.background)
            contents["control"] = self.source.read(views.control, white, ("rgb",), views.keys)["rgb"]
        return contents

    def _numbers(
        self, numbers: Int64[np.ndarray, " b"], repeated: Bool[np.ndarray, " b"], views: Views
    ) -> dict[str, np.ndarray]:
        index, rows = self.subset.index, views.rows
        found = {
            "index": numbers,
            "identity": index.identity[rows[:, 0]],
            "view": index.view[rows].astype(np.int64),
            "is_condition": views.is_condition,
            "azimuth": index.azimuth[rows],
            "elevation": index.elevation[rows],
            "c2w": index.c2w[rows],
            "K": index.K[rows],
            "background": views.background,
            "repeated": repeated,
        }
        if self.embeddings is not None:
            of_view = isinstance(self.recipe, SingleView)
            places = np.searchsorted(self.subset.starts, numbers, "right") - 1 if of_view else numbers
            found["identity_embedding"] = self.embeddings[places]
        return found
