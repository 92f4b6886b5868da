"""Blends of datasets: each batch comes from one of them, drawn by given weights, and a resume is as exact as theirs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count

from manifests.draws import generator
from manifests.errors import UserError
from manifests.order import State
from train.batch import Batch
from train.data.sequential import SequentialLoader
from train.data.stream import Loader

FORMAT = 2
"""Version of the saved state; version 1 was written by Python callers only."""


@dataclass(frozen=True)
class BlendState:
    """Position of a blend: its step, and the states of its parts."""

    seed: int
    weights: tuple[float, ...]
    step: int
    parts: tuple[State, ...]
    format: int = FORMAT

    @property
    def dataset(self) -> str:
        """The fingerprints of the datasets."""
        return " ".join(part.dataset for part in self.parts)

    @property
    def selection(self) -> str:
        """The fingerprints of the selections."""
        return " ".join(part.selection or "none" for part in self.parts)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "BlendState":
        """Read a state; raises UserError if the text is none, or has another format."""
        try:
            saved = json.loads(text)
            parts = tuple(State.from_json(json.dumps(part)) for part in saved.pop("parts"))
            state = BlendState(parts=parts, **{**saved, "weights": tuple(saved["weights"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"this is not the state of a blend ({type(error).__name__}: {error})") from error
        if state.format != FORMAT:
            raise UserError(f"the state of the blend has format {state.format}; this spinset reads {FORMAT}")
        return state


class Blend:
    """Endless batches of several loaders; which of them a step takes is a function of the seed and the step alone."""

    def __init__(self, parts: Sequence[Loader | SequentialLoader], weights: Sequence[float], seed: int):
        self.parts, self.weights, self.seed, self.step = list(parts), tuple(weights), seed, 0

    @property
    def samples(self) -> int:
        """Samples of all datasets together."""
        return sum(part.samples for part in self.parts)

    def part_at(self, step: int) -> int:
        """The position of the loader that a step takes its batch from, the same on all ranks."""
        total = sum(self.weights)
        return int(generator(self.seed, "blend", step).choice(len(self.parts), p=[w / total for w in self.weights]))

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end; another iteration continues where this one stopped."""
        streams = [iter(part) for part in self.parts]
        for step in count(self.step):
            batch = next(streams[self.part_at(step)])
            self.step = step + 1
            yield batch

    def state(self) -> BlendState:
        return BlendState(self.seed, self.weights, self.step, tuple(part.state() for part in self.parts))

    def resume(self, text: str) -> str:
        """Continue from a saved state; returns a line that states what is not exact, empty if all is.

        Raises:
            UserError: the state belongs to other datasets, in another order, or to other weights or another seed.
        """
        state = BlendState.from_json(text)
        if (state.seed, state.weights, len(state.parts)) != (self.seed, self.weights, len(self.parts)):
            raise UserError(
                f"the state was saved with seed {state.seed} and {len(state.parts)} datasets of weights "
                f"{_listed(state.weights)}, this run has {self.seed}, {len(self.parts)} and {_listed(self.weights)}"
            )
        for part, saved in zip(self.parts, state.parts, strict=True):
            saved.check(part.state())
        notes = [part.resume(saved.to_json()) for part, saved in zip(self.parts, state.parts, strict=True)]
        self.step = state.step
        return next((note for note in notes if note), "")


def _listed(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:g}" for weight in weights)
