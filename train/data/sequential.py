"""Reads shards from front to back with the webdataset library, for storage that is slow at anything else.

What the loader promises (one global order, exact resume) cannot hold here: a stream is shuffled within a buffer, and a
rank reads whole shards. What can hold does: selections, equal steps on all ranks, and no shard that ends early unseen.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int64
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander

from manifests import schema
from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.errors import UserError
from manifests.index import open_index
from manifests.selection import read_selection

Sample = dict[str, Any]


@dataclass(frozen=True)
class SequentialConfig:
    """What is streamed."""

    data: str
    """Folder or address of the dataset."""
    selection: str = ""
    """Stream what this selection keeps; everything without one."""
    members: tuple[str, ...] = ("rgb",)
    """Any of rgb, alpha, normal and json."""
    buffer: int = 1000
    """Samples among which the next one is drawn; 0 keeps the order of the shards."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.members or set(self.members) - set(schema.MEMBERS):
            raise UserError(f"members are {self.members}; give any of {', '.join(schema.MEMBERS)}")
        if self.buffer < 0:
            raise UserError(f"buffer is {self.buffer}; it must be 0 or more")


def open_sequential(
    config: SequentialConfig, rank: int = 0, world: int = 1, epoch: int = 0
) -> tuple[Iterable[Sample], int]:
    """An endless pipeline of one rank's samples (key, identity, view and members as bytes), and how many are its epoch.

    An epoch is the share that divides evenly, so all ranks have equal steps; a rank whose shards hold fewer begins them
    again, and so does a worker that is ahead of the others. It takes `.map` and `.batched` as any pipeline of
    webdataset, and runs as `webdataset.WebLoader(pipeline, batch_size=None, num_workers=2).with_epoch(count)`.

    Raises:
        ValueError: the selection does not fit, or there are fewer shards than ranks; while streaming, a shard ends
            before all of its views were seen.
    """
    dataset = Dataset(config.data)
    index = open_index(dataset)
    subset = index.select(read_selection(dataset, config.selection) if config.selection else None)
    shards = np.unique(index.shard[subset.rows])
    if len(shards) < world:
        raise UserError(f"{len(shards)} shards cannot be shared by {world} ranks; use the loader, which reads views")
    order = generator(config.seed, "shards", epoch).permutation(shards)[rank::world]
    stages = [
        partial(_shards, order.tolist()),
        split_by_worker,
        partial(_expanded, config.data),
        partial(_chosen, schema.view_codes(index.identity, index.view)[subset.rows], config.members),
    ]
    if config.buffer:
        seed = int(generator(config.seed, "buffer", epoch, rank).integers(1 << 63))
        stages.append(shuffle(config.buffer, rng=random.Random(seed)))
    return DataPipeline(*stages).repeat(), len(subset.rows) // world


def _shards(shards: list[int]) -> Iterator[Sample]:
    """The shards of a rank; workers split them before any is opened."""
    yield from ({"shard": shard} for shard in shards)


def _expanded(url: str, sources: Iterable[Sample]) -> Iterator[Sample]:
    """All samples of each shard, their members by name."""
    dataset = Dataset(url)
    names = {extension: name for name, extension in dataset.plan.members.items()}
    for source in sources:
        tar = dataset.file(source["shard"], ".tar")
        expected, seen = dataset.done(source["shard"])["views"], 0
        with dataset.storage.open(tar) as stream:
            for sample in group_by_keys(tar_file_expander([{"url": tar, "stream": stream}])):
                if sample.keys() >= names.keys():
                    seen += 1
                    yield {"__key__": sample["__key__"]} | {names[ext]: sample[ext] for ext in names}
        # A tar that was cut between two members looks like a shorter one to whoever reads it.
        if seen != expected:
            raise UserError(f"{tar} ends after {seen} of {expected} views; spinset verify says what is damaged")


def _chosen(codes: Int64[np.ndarray, " n"], members: tuple[str, ...], samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples that are wanted, with the members that are asked for."""
    for sample in samples:
        identity, view = map(int, sample["__key__"].split("_v"))
        if schema.is_among(codes, np.array([identity]), np.array([view])).item():
            yield {"key": sample["__key__"], "identity": identity, "view": view} | {m: sample[m] for m in members}
