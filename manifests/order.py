"""The order of training samples: a pure function of a seed, whatever the number of ranks and workers.

An epoch is a permutation of the samples; batches are cut from it for all ranks together, and a rank takes a stripe of
each. A cursor into the order is (epoch, samples consumed within it), so a resume needs nothing else.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int64

from manifests.draws import generator
from manifests.errors import UserError

TAILS = ("drop", "pad", "exact")
"""Ways to treat the last, incomplete batch of an epoch: it is dropped; padded from the start of the epoch, with the samples
marked as repeated; or filled from the next epoch, so that nothing is lost or repeated."""

FORMAT = 1
KEPT_EPOCHS = 2


class Cursor(NamedTuple):
    """A position in the order of samples."""

    epoch: int
    position: int
    """Number of samples consumed within the epoch."""


START = Cursor(0, 0)


class GlobalBatch(NamedTuple):
    """The samples of one step of all ranks, with the epoch of each and whether it repeats one of that epoch."""

    samples: Int64[np.ndarray, " b"]
    epochs: Int64[np.ndarray, " b"]
    repeated: Bool[np.ndarray, " b"]

    def stripe(self, rank: int, world: int) -> "GlobalBatch":
        """The samples of one rank."""
        return GlobalBatch(*(column[rank::world] for column in self))


@dataclass(frozen=True, eq=False)
class Order:
    """The global order of a number of samples; `batch` counts the samples of all ranks."""

    seed: int
    samples: int
    batch: int
    tail: str = "drop"
    window: int = 0
    """Shuffle within groups of this many shards, which are permuted as a whole; 0 shuffles everything."""
    shards: Int[np.ndarray, " samples"] | None = None
    """The shard of each sample, for a window."""
    _permutations: dict[int, Int64[np.ndarray, " samples"]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise UserError(f"tail is {self.tail!r}; it must be one of {', '.join(TAILS)}")
        if self.batch < 1 or self.samples < 1:
            raise UserError(f"{self.samples} samples in batches of {self.batch}; both must be 1 or more")
        if self.tail == "drop" and self.samples < self.batch:
            raise UserError(
                f"{self.samples} samples do not fill one batch of {self.batch}; "
                f"take a batch of at most {self.samples}, or the tail pad or exact"
            )
        if self.window < 0 or (self.window and self.shards is None):
            raise UserError(
                f"window is {self.window}; it must be 0, or a number of shards with the shard of each sample"
            )

    def permutation(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        """All samples in the order of one epoch."""
        if epoch not in self._permutations:
            while len(self._permutations) >= KEPT_EPOCHS:
                del self._permutations[next(iter(self._permutations))]
            self._permutations[epoch] = self._permute(epoch)
        return self._permutations[epoch]

    def _permute(self, epoch: int) -> Int64[np.ndarray, " samples"]:
        rng = generator(self.seed, "order", epoch)
        order = rng.permutation(self.samples)
        if not self.window:
            return order
        assert self.shards is not None
        present = np.bincount(self.shards) > 0
        group = rng.permutation(present.sum()) // self.window
        # Sorting small numbers takes a fraction of the time.
        group = group.astype(np.min_scalar_type(len(group)))[np.cumsum(present)[self.shards] - 1]
        return order[np.argsort(group[order], kind="stable")]

    def batch_at(self, cursor: Cursor) -> GlobalBatch:
        """The batch that begins at a cursor."""
        epoch, position = self.settle(cursor)
        if self.tail == "exact":
            later, at = np.divmod(position + np.arange(self.batch), self.samples)
            samples = np.concatenate([self.permutation(epoch + e)[at[later == e]] for e in np.unique(later).tolist()])
            return GlobalBatch(samples, epoch + later, np.zeros(self.batch, bool))
        order = self.permutation(epoch)
        own = order[position : position + self.batch]
        samples = np.concatenate([own, np.resize(order, self.batch - len(own))])
        return GlobalBatch(samples, np.full(self.batch, epoch), np.arange(self.batch) >= len(own))

    def after(self, cursor: Cursor) -> Cursor:
        """The cursor where the next batch begins."""
        epoch, position = self.settle(cursor)
        if self.tail == "exact":
            later, position = divmod(position + self.batch, self.samples)
            return Cursor(epoch + later, position)
        return self.settle(Cursor(epoch, min(position + self.batch, self.samples)))

    def settle(self, cursor: Cursor) -> Cursor:
        """The cursor itself, or the start of the next epoch if no further batch begins in this one."""
        left = self.samples - cursor.position
        over = left < self.batch if self.tail == "drop" else left < 1
        return Cursor(cursor.epoch + 1, 0) if over else cursor

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch, the same on all ranks; with the tail exact it is the largest number possible."""
        return self.samples // self.batch if self.tail == "drop" else -(-self.samples // self.batch)

    def steps(self, epochs: int, since: Cursor = START) -> int:
        """Number of steps that begin before the end of epoch `epochs`."""
        epoch, position = self.settle(since)
        if epoch >= epochs:
            return 0
        left = self.samples - position
        if self.tail == "exact":
            return -(-((epochs - epoch - 1) * self.samples + left) // self.batch)
        remaining = left // self.batch if self.tail == "drop" else -(-left // self.batch)
        return (epochs - epoch - 1) * self.steps_per_epoch + remaining


def check_ranks(batch: int, rank: int, world: int) -> None:
    """Raise UserError unless a batch divides evenly among `world` ranks."""
    if not 0 <= rank < world:
        raise UserError(f"rank is {rank} of {world}; ranks count from 0")
    if batch % world:
        fitting = [n for n in (batch // world * world, -(-batch // world) * world) if n]
        numbers = " or ".join(map(str, fitting))
        raise UserError(f"a batch of {batch} does not divide among {world} ranks; take {numbers}")


@dataclass(frozen=True)
class State:
    """The position of a run in its order, and the inputs of that order: all that a resume needs."""

    dataset: str
    selection: str | None
    sampling: str
    """A fingerprint of how samples are drawn and read."""
    seed: int
    samples: int
    batch: int
    tail: str
    window: int
    epoch: int = 0
    position: int = 0
    format: int = FORMAT

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.position)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "State":
        """Read a state; raises UserError if the text is not one."""
        try:
            fields: dict[str, Any] = json.loads(text)
            state = State(**fields)
        except (ValueError, TypeError) as error:
            raise UserError(f"this is not the state of a loader ({error})") from error
        if not all(isinstance(n, int) and n >= 0 for n in state.cursor):
            raise UserError(f"this is not the state of a loader (epoch {state.epoch!r}, position {state.position!r})")
        if state.format != FORMAT:
            raise UserError(f"the state has format {state.format}; this spinset reads {FORMAT}")
        return state

    def check(self, run: "State") -> None:
        """Raise UserError unless a run has the order of this state; only the size of its batches may differ."""
        if self.dataset != run.dataset:
            raise UserError(
                f"the state belongs to another dataset, or to this one with other shards ({self.dataset[:12]}, "
                f"here {run.dataset[:12]}); open the dataset it was saved with"
            )
        if self.selection != run.selection:
            raise UserError(
                f"the state was saved with another selection ({(self.selection or 'none')[:12]}, "
                f"here {(run.selection or 'none')[:12]}); give the selection it was saved with"
            )
        if (self.sampling, self.samples) != (run.sampling, run.samples):
            raise UserError(
                "the state was saved with another recipe, other latents or embeddings; give those it was saved with"
            )
        for name in ("seed", "tail", "window"):
            there, here = getattr(self, name), getattr(run, name)
            if there != here:
                raise UserError(f"the state was saved with {name} {there}, this run has {here}; give {name} {there}")


def fingerprint_of(description: Mapping[str, Any]) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
