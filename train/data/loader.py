"""Opens datasets for training; whatever can be known to fail is an error here, before the first step."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
from jaxtyping import Float32

from manifests.cache import ShardCache
from manifests.dataset import Dataset
from manifests.embeddings import embeddings_of, recogniser_of
from manifests.errors import UserError
from manifests.index import Index, Subset, open_index
from manifests.order import Order, State, check_ranks, fingerprint_of
from manifests.reader import Reader
from manifests.selection import read_selection
from train.batch import Batch, Source
from train.data.batch_dataset import BatchDataset
from train.data.blend import Blend
from train.data.config import LoaderConfig
from train.data.latent_source import open_latents
from train.data.pixels import EncodedSource, PixelSource
from train.data.sampling import open_control, samples, unable
from train.data.sequential import SequentialLoader
from train.data.stream import Loader

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
    if config.blend:
        urls = (config.data, *config.blend)
        parts = [replace(config, data=url, blend=(), blend_weights=()) for url in urls]
        _check_blend(parts)
        loaders = [_open_one(part, rank, world, source) for part in parts]
        return Blend(loaders, config.blend_weights or (1.0,) * len(urls), config.seed)
    return _open_one(config, rank, world, source)


def _check_blend(parts: Sequence[LoaderConfig]) -> None:
    """Raise UserError unless the batches of all parts have one shape and one meaning."""
    datasets = {config.data: Dataset(config.data) for config in parts}
    table, resolution = parts[0].embeddings, parts[0].resolution
    for what, values in {
        "rig": {url: dataset.plan.rig["id"] for url, dataset in datasets.items()},
        "resolution": {url: resolution or dataset.plan.resolution for url, dataset in datasets.items()},
        "background": {url: dataset.plan.background for url, dataset in datasets.items()},
        "recogniser": {url: table and recogniser_of(dataset, table)[:12] for url, dataset in datasets.items()},
    }.items():
        first, *others = values
        for url in others:
            if values[url] != values[first]:
                raise UserError(
                    f"a blend has one {what}: {first} has {values[first]}, {url} has {values[url]}; train on them apart"
                )


def _open_one(
    config: LoaderConfig, rank: int, world: int, source: Callable[[Dataset, Subset], Source] | None
) -> Loader | SequentialLoader:
    check_ranks(config.batch, rank, world)
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
    batch_dataset = BatchDataset(
        subset=subset,
        recipe=config.recipe,
        source=_source(dataset, subset, reader, config) if source is None else source(dataset, subset),
        members=config.members,
        seed=config.seed,
        random_background=config.random_background if "rgb" in config.members and config.decode else 0.0,
        control=open_control(subset, dataset.plan.rig) if config.control else None,
        # Pictures also where the views themselves are cached latents.
        control_source=_stored(dataset, subset, reader, replace(config, members=("rgb",))) if config.control else None,
        embeddings=embeddings,
        tolerance=config.tolerance,
    )
    sampling = {
        "recipe": [type(config.recipe).__name__, asdict(config.recipe)],
        "control": config.control,
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
    if config.sequential:
        return SequentialLoader(config, batch_dataset, start, (rank, world), left_out)
    return Loader(config, batch_dataset, _order(config, batch_dataset), start, (rank, world), cache, left_out)


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


def _source(dataset: Dataset, subset: Subset, reader: Reader, config: LoaderConfig) -> Source:
    """Cached latents or stored members; raises UserError unless all of them exist."""
    return open_latents(dataset, subset, config) if config.latents else _stored(dataset, subset, reader, config)


def _stored(dataset: Dataset, subset: Subset, reader: Reader, config: LoaderConfig) -> Source:
    stored, resolution = dataset.plan.resolution, config.resolution or dataset.plan.resolution
    if resolution > stored:
        raise UserError(f"--loader.resolution is {resolution}; the dataset has {stored} px, give at most that")
    if unknown := sorted(set(config.members) - set(dataset.plan.members)):
        known = ", ".join(name for name in dataset.plan.member_names if name != "json" or not config.decode)
        raise UserError(f"--loader.members hold {unknown[0]}; the dataset has {known}")
    needed = set(config.members)
    if "rgb" in needed and config.random_background and config.decode:
        needed.add("alpha")
        if dataset.plan.background != "white":
            raise UserError(
                f"the pictures lie over {dataset.plan.background}, other backgrounds are composited from white ones; give "
                "--loader.random-background 0, or generate with --background white"
            )
    for member in sorted(needed):
        lacking = np.flatnonzero(subset.index.size[member][subset.rows] == 0)
        if len(lacking):
            key = subset.index.key(int(subset.rows[lacking[0]]))
            problem = f"{len(lacking)} of {len(subset.rows)} views have no {member} (first: {key})"
            hint = "--loader.random-background 0 does without" if member == "alpha" else "load other --loader.members"
            raise UserError(f"{problem}; {hint}")
    return PixelSource(reader, stored, resolution, config.as_uint8) if config.decode else EncodedSource(reader)


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


def _order(config: LoaderConfig, batch_dataset: BatchDataset) -> Order:
    count = samples(batch_dataset.recipe, batch_dataset.subset)
    shards = batch_dataset.shard_of(np.arange(count)) if config.window else None
    return Order(config.seed, count, config.batch, config.tail, config.window, shards)
