"""Opens datasets for training, one or a blend of several; whatever can be known to fail is an error before the first step.

Each batch of a blend comes from one dataset, drawn by given weights, and a resume is as exact as theirs.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count

import numpy as np
from jaxtyping import Float32

from manifests.cache import ShardCache
from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.embeddings import embeddings_of, recogniser_of
from manifests.errors import UserError
from manifests.index import Index, Subset, open_index
from manifests.order import Order, State, check_ranks, fingerprint_of
from manifests.reader import Reader
from manifests.selection import read_selection
from train.batch import Batch, Source
from train.data.batch_dataset import BatchDataset
from train.data.config import LoaderConfig
from train.data.sampling import Control, open_control, samples, unable
from train.data.sequential import SequentialLoader
from train.data.sources import open_latents, open_stored
from train.data.stream import DatasetFacts, Loader

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


__all__ = ["AnyLoader", "Batch", "Loader", "LoaderConfig", "open_loader"]

AnyLoader = Loader | SequentialLoader | Blend

GB = 10**9


def open_loader(
    config: LoaderConfig,
    rank: int = 0,
    world: int = 1,
    source: Callable[[Dataset, Subset], Source] | None = None,
) -> AnyLoader:
    """Open a dataset, or a blend of several, for one rank of a run.

    Args:
        config: What is loaded; `blend` makes a Blend, `sequential` a SequentialLoader, otherwise a Loader is made.
        rank: Number of this rank.
        world: Number of ranks.
        source: Makes the source of a sample's contents in the place of the pictures or latents of the dataset.

    Raises:
        MissingFile: there is no dataset.
        UserError: what is known to go wrong later: the selection, members or embeddings are missing, identities cannot be
            sampled, the batch does not divide among the ranks, the datasets of a blend do not go together.
    """
    check_ranks(config.batch, rank, world)
    urls = (config.data, *config.blend)
    parts = [_open_one(replace(config, data=url, blend=(), blend_weights=()), rank, world, source) for url in urls]
    if not config.blend:
        return parts[0]
    _check_blend([part.facts for part in parts], config.resolution)
    return Blend(parts, config.blend_weights or (1.0,) * len(urls), config.seed)


def _check_blend(datasets: Sequence[DatasetFacts], resolution: int) -> None:
    """Raise UserError unless the batches of all datasets have one shape and one meaning."""
    for what, values in {
        "rig": [one.plan.rig["id"] for one in datasets],
        "resolution": [resolution or one.plan.resolution for one in datasets],
        "background": [one.plan.background for one in datasets],
        "recogniser": [one.recogniser[:12] for one in datasets],
    }.items():
        for dataset, value in zip(datasets, values, strict=True):
            if value != values[0]:
                raise UserError(
                    f"a blend has one {what}: {datasets[0].url} has {values[0]}, {dataset.url} has {value}; train on them "
                    "apart"
                )


def _open_one(
    config: LoaderConfig, rank: int, world: int, source: Callable[[Dataset, Subset], Source] | None
) -> Loader | SequentialLoader:
    dataset = Dataset(config.data)
    index = open_index(dataset)
    subset = index.select(read_selection(dataset, config.selection) if config.selection else None)
    subset, embeddings, left_out = _usable(dataset, subset, config)
    if world > 1 and (missing := len(dataset.pending())):
        raise UserError(
            f"{missing} shards of {config.data} are still to be made, and ranks could see different ones; finish it first"
        )
    cache = None if config.latents else _cache(dataset, index, config)
    reader = Reader(dataset, index, cache)
    if source is not None:
        opened = source(dataset, subset)
    elif not config.latents:
        opened = open_stored(dataset, subset, reader, config)
    else:
        opened = open_latents(dataset, subset, config)
    control, control_source, pool = None, None, ""
    if config.control:
        control, control_source, pool = _open_control(config, dataset, subset, reader)
    batch_dataset = BatchDataset(
        subset=subset,
        recipe=config.recipe,
        source=opened,
        members=config.members,
        seed=config.seed,
        random_background=config.random_background if "rgb" in config.members and config.decode else 0.0,
        control=control,
        control_source=control_source,
        first_head=dataset.plan.seed,
        embeddings=embeddings,
        tolerance=config.tolerance,
    )
    sampling = {
        "recipe": [type(config.recipe).__name__, asdict(config.recipe)],
        "control": pool or config.control,
        # The contents count, too: a score table can be made again with other settings under the same name.
        "embeddings": config.embeddings and [config.embeddings, _sha256(embeddings)],
        "source": batch_dataset.source.lineage,
        **({"sequential": True} if config.sequential else {}),
    }
    start = State(
        dataset=index.fingerprint,
        selection=subset.fingerprint,
        sampling=fingerprint_of(sampling),
        samples=samples(config.recipe, subset),
        **{name: getattr(config, name) for name in ("seed", "batch", "tail", "window")},
    )
    recogniser = recogniser_of(dataset, config.embeddings) if config.embeddings else ""
    facts = DatasetFacts(config.data, dataset.plan, subset.identities, recogniser)
    if config.sequential:
        return SequentialLoader(config, facts, batch_dataset, start, (rank, world), left_out)
    shards = batch_dataset.shard_of(np.arange(start.samples)) if config.window else None
    order = Order(config.seed, start.samples, config.batch, config.tail, config.window, shards)
    return Loader(config, facts, batch_dataset, order, start, (rank, world), cache, left_out)


def _open_control(
    config: LoaderConfig, dataset: Dataset, subset: Subset, reader: Reader
) -> tuple[Control, Source, str]:
    """The strangers of control pictures, the source of these, and the fingerprint of their dataset if it is another one."""
    # Control pictures keep their background, and are pictures also where the views themselves are cached latents.
    plain = replace(config, members=("rgb",), random_background=0.0)
    if not config.control_data:
        rig, seed = dataset.plan.rig, dataset.plan.seed
        return open_control(subset, rig, seed), open_stored(dataset, subset, reader, plain), ""
    pool = Dataset(config.control_data)
    if pool.plan.rig != dataset.plan.rig:
        raise UserError(
            f"--loader.control-data is {config.control_data} of rig {pool.plan.rig['id']}; {config.data} has rig "
            f"{dataset.plan.rig['id']}, give strangers of the same"
        )
    index = open_index(pool)
    strangers = index.select()
    source = open_stored(pool, strangers, Reader(pool, index), plain)
    return open_control(strangers, pool.plan.rig, pool.plan.seed), source, index.fingerprint


def _sha256(vectors: Float32[np.ndarray, "i d"] | None) -> str:
    return hashlib.sha256(b"" if vectors is None else vectors.tobytes()).hexdigest()


def _usable(
    dataset: Dataset, subset: Subset, config: LoaderConfig
) -> tuple[Subset, Float32[np.ndarray, "i d"] | None, dict[int, str]]:
    """The identities that can be sampled, their embeddings, and the reasons why others cannot."""
    reasons, vectors = unable(config.recipe, subset), None
    if config.embeddings:
        vectors = embeddings_of(dataset, config.embeddings, subset.identities)
        missing = np.flatnonzero(np.isnan(vectors).any(1)).tolist()
        reasons |= dict.fromkeys(missing, f"has no embedding in {config.embeddings}")
    left_out = {int(subset.identities[position]): reason for position, reason in sorted(reasons.items())}
    if not left_out:
        return subset, vectors, left_out
    identity, reason = next(iter(left_out.items()))
    problem = f"{len(left_out)} of {len(subset.identities)} identities cannot be sampled (first: {identity} {reason})"
    if not config.leave_out or len(left_out) == len(subset.identities):
        hint = "--loader.leave-out goes on without them" if not config.leave_out else "take another recipe"
        raise UserError(f"{problem}; {hint}")
    wanted = np.ones(len(subset.identities), bool)
    wanted[list(reasons)] = False
    return subset.restricted_to(wanted), None if vectors is None else vectors[wanted], left_out


def _cache(dataset: Dataset, index: Index, config: LoaderConfig) -> ShardCache | None:
    """A cache for a remote dataset, if it can hold the shards that the order returns to."""
    if dataset.storage.is_local or not config.cache:
        return None
    sizes, bound = index.shard_sizes, int(config.cache_gb * GB)
    needed = sizes.sum() if not config.window else 2 * config.window * sizes.max()
    if needed <= bound:
        return ShardCache(dataset.storage.url, index.fingerprint, config.cache, bound)
    if config.window:
        fits = bound // (2 * int(sizes.max()))
        hint = f"give --loader.window {fits}" if fits else f"give --loader.cache-gb {needed / GB:.3g}"
        raise UserError(
            f"--loader.cache-gb is {config.cache_gb:g}; two windows of {config.window} shards take {needed / GB:.3g}, {hint}"
        )
    warnings.warn(
        f"the shards take {needed / GB:.3g} GB, --loader.cache-gb is {config.cache_gb:g}: byte ranges are read instead; "
        "a cache this small is of use with --loader.window only",
        stacklevel=3,
    )
    return None
