"""Blends of datasets: every batch comes from one of them, in given shares, and a resume is as exact as a loader's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import count

from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.errors import UserError
from manifests.order import State
from train.data.batch import Batch
from train.data.config import FOREVER, LoaderConfig
from train.data.loader import open_loader
from train.data.stream import Loader

FORMAT = 1
SAME = ("resolution", "members", "recipe", "batch", "control", "latents")
"""What the parts of a blend must agree on, for their batches to have one shape and one meaning."""


def open_blend(
    parts: Sequence[LoaderConfig], shares: Sequence[float], rank: int = 0, world: int = 1, seed: int = 0
) -> "Blend":
    """Open several datasets for one rank; a batch comes from part i with probability shares[i] / sum(shares).

    Raises:
        FileNotFoundError, ValueError: as `open_loader`, or the parts do not go together: other rigs, resolutions,
            recipes or batches, shares that are no shares, or a part that ends.
    """
    if not parts or len(parts) != len(shares) or min(shares) <= 0:
        raise UserError(f"{len(parts)} datasets and the shares {list(shares)}; give each dataset a positive share")
    rigs = {config.data: Dataset(config.data).plan for config in parts}
    for what, values in {
        "rig": {url: plan.rig["id"] for url, plan in rigs.items()},
        "resolution": {c.data: c.resolution or rigs[c.data].resolution for c in parts},
        **{name: {c.data: getattr(c, name) for c in parts} for name in SAME if name != "resolution"},
    }.items():
        first, *others = values
        for url in others:
            if values[url] != values[first]:
                raise UserError(
                    f"a blend has one {what}: {first} has {values[first]}, {url} has {values[url]}; train on them apart"
                )
    if ended := [config.data for config in parts if config.epochs != FOREVER]:
        raise UserError(f"{ended[0]} ends after some epochs; the parts of a blend go on forever (epochs 0)")
    return Blend([open_loader(config, rank, world) for config in parts], list(shares), seed)


class Blend:
    """Batches of several loaders; which one a step takes is a function of the seed and the step alone."""

    def __init__(self, loaders: Sequence[Loader], shares: Sequence[float], seed: int):
        self.loaders, self.shares, self.seed, self.step = loaders, list(shares), seed, 0

    def part_of(self, step: int) -> int:
        """The part that a step takes its batch from, the same on all ranks."""
        total = sum(self.shares)
        return int(generator(self.seed, "blend", step).choice(len(self.shares), p=[s / total for s in self.shares]))

    def __iter__(self) -> Iterator[Batch]:
        """Batches forever; another iteration goes on where this one stopped."""
        streams = [iter(loader) for loader in self.loaders]
        for step in count(self.step):
            batch = next(streams[self.part_of(step)])
            self.step = step + 1
            yield batch

    def state(self) -> str:
        """Where the run is, as JSON: the step, and the state of every part."""
        parts = [asdict(loader.state()) for loader in self.loaders]
        return json.dumps(
            {"format": FORMAT, "seed": self.seed, "shares": self.shares, "step": self.step, "parts": parts}
        )

    def resume(self, text: str) -> None:
        """Go on from a state; raises ValueError if it belongs to another blend."""
        try:
            saved = json.loads(text)
            fields = [saved[name] for name in ("format", "seed", "shares", "step", "parts")]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"this is not the state of a blend ({type(error).__name__}: {error})") from error
        form, seed, shares, step, parts = fields
        if (form, seed, shares, len(parts)) != (FORMAT, self.seed, self.shares, len(self.loaders)):
            raise UserError(
                f"the state was saved with seed {seed} and shares {shares}, this blend has {self.seed} and {self.shares}"
            )
        states = [State.from_json(json.dumps(part)) for part in parts]
        for loader, state in zip(self.loaders, states, strict=True):
            state.check(loader.state())
        for loader, state in zip(self.loaders, states, strict=True):
            loader.resume(state)
        self.step = step
