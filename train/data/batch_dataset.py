"""Makes batches out of requests for samples; worker processes of the loader run it, without state of their own."""

from dataclasses import dataclass, fields, replace
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
from train.data.sampling import Control, SingleView, ViewRecipe, samples

RETRIES = 64
"""Number of times that a batch is read again for each damaged member that a run tolerates."""


class BadMember(NamedTuple):
    """A member that could not be read or decoded."""

    shard: str
    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, {self.member}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Delivery:
    """A batch on its way out of a worker: tensors where they are large, otherwise arrays, which need no shared memory."""

    numbers: dict[str, np.ndarray]
    contents: dict[str, Any]
    bad: tuple[BadMember, ...]
    """Damaged members, whose samples were replaced."""

    def batch(self) -> Batch:
        numbers = {name: torch.from_numpy(array) for name, array in self.numbers.items()}
        values = {**numbers, **self.contents}  # contents come last: cached latents have their own background
        further = {name: values.pop(name) for name in values.keys() - {field.name for field in fields(Batch)}}
        return Batch(**values, members=further or None)

    def pin_memory(self) -> "Delivery":
        pinned = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in self.contents.items()}
        return replace(self, contents=pinned)


@dataclass(frozen=True, eq=False)
class DrawnViews:
    """The views that were drawn for a request, by their rows in the index."""

    rows: Int64[np.ndarray, "b v"]
    is_condition: Bool[np.ndarray, "b v"]
    control: Int64[np.ndarray, "b v"] | None
    background: Float32[np.ndarray, "b 3"]
    keys: list[Key]


@dataclass(frozen=True, eq=False)
class BatchDataset(Requests):
    """Makes batches; a sample depends on the seed, its epoch and its number alone."""

    subset: Subset
    recipe: ViewRecipe
    source: Source
    members: tuple[str, ...]
    seed: int
    random_background: float
    control: Control | None
    control_source: Source | None
    """Reads the pictures of other identities."""
    first_head: int
    """The seed of the dataset, which together with an identity identifies a head."""
    embeddings: Float32[np.ndarray, "i d"] | None
    """Mean embeddings of the identities of the subset, in their order."""
    tolerance: int

    def __getitem__(self, request: GlobalBatch) -> Delivery | Exception:
        """The batch, or the error that stops the run; torch would bury an error that is raised here in a traceback."""
        try:
            return self.serve(request)
        except (ValueError, OSError) as error:
            return error

    def serve(self, request: GlobalBatch) -> Delivery:
        """Make a batch; a sample with a damaged member is replaced by the one of the next number, up to the tolerance."""
        numbers, repeated, bad = request.samples.copy(), request.repeated.copy(), []
        while True:
            views = self.views(numbers, request.epochs)
            read = views.rows
            try:
                contents = self.source.read(views.rows, views.background, self.members, views.keys)
                if views.control is not None and self.control_source is not None:
                    read, white = views.control, np.ones_like(views.background)
                    contents["control"] = self.control_source.read(read, white, ("rgb",), views.keys)["rgb"]
                break
            except DamagedData as error:
                bad.append(BadMember(error.file, error.member, error.problem))
                # Replacements may have damaged members as well.
                if len(set(bad)) > self.tolerance or len(bad) > self.tolerance * RETRIES:
                    raise
                hit = (read == error.row).any(1)
                numbers[hit] = (numbers[hit] + 1) % samples(self.recipe, self.subset)
                repeated |= hit
        return Delivery(self._numbers(numbers, repeated, views), contents, tuple(dict.fromkeys(bad)))

    def shard_of(self, numbers: Int64[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """The shard in which each sample lies."""
        firsts = numbers if isinstance(self.recipe, SingleView) else self.subset.starts[numbers]
        return self.subset.index.shard[self.subset.rows[firsts]]

    def views(self, numbers: Int64[np.ndarray, " b"], epochs: Int64[np.ndarray, " b"]) -> DrawnViews:
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
        return DrawnViews(
            rows, is_condition, self._control(rows, keys), background, [(self.seed, *key) for key in keys]
        )

    def _pick(self, key: tuple[int, int]) -> tuple[Int64[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
        own, index = self.subset.rows_of(key[1]), self.subset.index
        pick = self.recipe.pick(generator(self.seed, "sample", *key), index.azimuth[own], index.elevation[own])
        return own[pick.positions], pick.is_condition

    def _control(self, rows: Int64[np.ndarray, "b v"], keys: list[tuple[int, int]]) -> Int64[np.ndarray, "b v"] | None:
        if self.control is None:
            return None
        heads, view = self.subset.index.identity[rows[:, 0]] + self.first_head, self.subset.index.view[rows]
        joined = zip(keys, heads.tolist(), view, strict=True)
        return np.stack([self.control.rows(generator(self.seed, "control", *k), i, v) for k, i, v in joined])

    def _numbers(
        self, numbers: Int64[np.ndarray, " b"], repeated: Bool[np.ndarray, " b"], views: DrawnViews
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
            positions = np.searchsorted(self.subset.starts, numbers, "right") - 1 if of_view else numbers
            found["identity_embedding"] = self.embeddings[positions]
        return found
