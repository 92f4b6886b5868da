"""Streams shards from front to back with the webdataset library, for object storage, where random reads are slow.

Samples are those of the ordinary loader: the views and the background of an identity depend on the seed, the epoch and the
identity alone. Their order is weaker: each rank reads whole shards, its workers share them, and samples are shuffled within a
buffer; a rank that is dealt fewer samples begins its next epoch earlier. A resume is not exact either: it begins a new epoch,
and what was left of the last one is skipped.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count, groupby, islice
from tarfile import TarError
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander

from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.errors import UserError, damaged
from manifests.index import Subset
from manifests.order import GlobalBatch, State
from manifests.reader import Reader
from train.batch import Batch
from train.data.batch_dataset import BatchDataset, Delivery
from train.data.config import LoaderConfig
from train.data.sampling import SingleView, samples
from train.data.sources import EncodedSource, PixelSource
from train.data.stream import DatasetFacts, data_loader, lost_workers

RESTART = "the stream begins a new epoch: what was left of the last one is skipped"


class StreamedView(NamedTuple):
    """One view as it was read from a shard."""

    epoch: int
    row: int
    """Row of the index."""
    members: dict[str, bytes]


class StreamedSample(NamedTuple):
    """One sample with the members of its views as they are stored, by member and row of the index."""

    number: int
    epoch: int
    members: dict[tuple[str, int], bytes]


class StreamedMembers(Reader):
    """Reads members from memory, where a stream has left them, by member and row of the index."""

    members: dict[tuple[str, int], bytes]

    def read(self, wants: Mapping[str, Int[np.ndarray, " n"]]) -> dict[str, list[bytes]]:
        return {name: [self.members[name, row] for row in rows.tolist()] for name, rows in wants.items()}


class SequentialLoader:
    """Endless batches of one rank in the order of a stream; made by `open_loader` for a config with `sequential`."""

    def __init__(
        self,
        config: LoaderConfig,
        facts: DatasetFacts,
        batch_dataset: BatchDataset,
        start: State,
        ranks: tuple[int, int],
        left_out: dict[int, str],
    ):
        self.config, self.facts, self.batch_dataset, self.left_out = config, facts, batch_dataset, left_out
        self.rank, self.world = ranks
        self._start, self._next_epoch = start, 0
        self.shards = np.unique(batch_dataset.subset.index.shard[batch_dataset.subset.rows])
        if len(self.shards) < self.world:
            raise UserError(
                f"{len(self.shards)} shards of {config.data} cannot be shared by {self.world} ranks; drop --loader.sequential"
            )

    @property
    def parts(self) -> list["SequentialLoader"]:
        return [self]

    @property
    def samples(self) -> int:
        """Samples of an epoch, of all ranks together."""
        return samples(self.batch_dataset.recipe, self.batch_dataset.subset)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end; each iteration begins a new epoch.

        Raises:
            DamagedData: a shard ends before all of its views were read, or a member does not decode.
            OSError: a shard is no longer there, or a worker was killed.
        """
        config, seed = self.config, self.config.seed
        stages = [
            partial(_shards, self.shards, seed, self.rank, self.world, self._next_epoch),
            split_by_worker,
            partial(_views, config.data, self.batch_dataset.subset),
            partial(_samples, self.batch_dataset),
        ]
        if config.buffer:
            stages.append(partial(_shuffled, config.buffer, seed, self.rank))
        stages += [partial(_deliveries, self.batch_dataset, config.data, config.batch // self.world), _caught]
        pipeline: Any = DataPipeline(*stages)
        with lost_workers():
            for epoch, delivery in data_loader(pipeline, config):
                if isinstance(delivery, Exception):
                    raise delivery
                batch = delivery.batch()
                self._next_epoch = max(self._next_epoch, epoch + 1)
                yield batch

    def state(self) -> State:
        """The epoch that a resume begins: the one after the newest that this rank was given samples of."""
        return replace(self._start, epoch=self._next_epoch)

    def resume(self, text: str) -> str:
        """Begin the epoch of a saved state; returns a line that states what is not exact.

        Raises:
            UserError: the state belongs to another dataset, selection, recipe or seed.
        """
        state = State.from_json(text)
        state.check(self._start)
        self._next_epoch = state.epoch
        return RESTART


def _shards(
    shards: Int[np.ndarray, " s"], seed: int, rank: int, world: int, first_epoch: int
) -> Iterator[tuple[int, int]]:
    """The epochs and shards of a rank, without end; every epoch shuffles the shards and deals them to the ranks anew."""
    for epoch in count(first_epoch):
        for shard in generator(seed, "shards", epoch).permutation(shards)[rank::world].tolist():
            yield epoch, shard


def _views(url: str, subset: Subset, sources: Iterable[tuple[int, int]]) -> Iterator[StreamedView]:
    """The views of each shard that belong to the subset, in the order of the tar."""
    dataset, index = Dataset(url), subset.index
    names = {extension: name for name, extension in dataset.plan.members.items()}
    for epoch, shard in sources:
        first, end = np.searchsorted(subset.rows, [index.first_row(shard), index.first_row(shard + 1)])
        wanted = {index.key(row): row for row in subset.rows[first:end].tolist()}
        tar, expected, found = dataset.file(shard, ".tar"), dataset.done(shard)["views"], 0
        try:
            with dataset.storage.open(tar) as stream:
                for files in group_by_keys(tar_file_expander([{"url": tar, "stream": stream}])):
                    if files.keys() < names.keys():
                        continue
                    found += 1
                    if (row := wanted.get(files["__key__"])) is not None:
                        yield StreamedView(epoch, row, {name: files[ext] for ext, name in names.items()})
        except TarError as error:
            raise damaged(tar, f"cannot be read beyond {found} of {expected} views", url) from error
        # A tar that was cut between two members reads as a shorter one.
        if found != expected:
            raise damaged(tar, f"ends after {found} of {expected} views", url)


def _samples(batch_dataset: BatchDataset, views: Iterable[StreamedView]) -> Iterator[StreamedSample]:
    """The samples of each identity, as soon as all of its views have passed."""
    subset, index = batch_dataset.subset, batch_dataset.subset.index
    positions = {identity: i for i, identity in enumerate(subset.identities.tolist())}
    names = {*batch_dataset.members, *(["alpha"] if batch_dataset.random_background else [])}
    for (epoch, identity), group in groupby(views, lambda view: (view.epoch, int(index.identity[view.row]))):
        stored = {view.row: view.members for view in group}
        position = positions[identity]
        if len(stored) < len(subset.rows_of(position)):
            raise UserError(f"the views of identity {identity} do not lie side by side; drop --loader.sequential")
        is_view = isinstance(batch_dataset.recipe, SingleView)
        numbers = range(*subset.starts[position : position + 2].tolist()) if is_view else [position]
        for number in numbers:
            rows = batch_dataset.views(np.array([number]), np.array([epoch])).rows[0].tolist()
            yield StreamedSample(number, epoch, {(name, row): stored[row][name] for row in rows for name in names})


def _shuffled(buffer: int, seed: int, rank: int, stream: Iterable[StreamedSample]) -> Iterator[StreamedSample]:
    """The samples of each epoch, shuffled within a buffer."""
    for epoch, group in groupby(stream, lambda sample: sample.epoch):
        draws = random.Random(int(generator(seed, "buffer", epoch, rank).integers(1 << 63)))
        yield from shuffle(buffer, rng=draws)(group)


def _deliveries(
    batch_dataset: BatchDataset, url: str, size: int, stream: Iterator[StreamedSample]
) -> Iterator[tuple[int, Delivery | Exception]]:
    """Batches with the newest epoch of their samples."""
    reader, source = StreamedMembers(Dataset(url), batch_dataset.subset.index), batch_dataset.source
    assert isinstance(source, PixelSource | EncodedSource)
    batch_dataset = replace(batch_dataset, source=replace(source, reader=reader))
    while group := list(islice(stream, size)):
        reader.members = {key: data for sample in group for key, data in sample.members.items()}
        numbers, epochs = (np.array([sample[i] for sample in group]) for i in (0, 1))
        yield int(epochs.max()), batch_dataset[GlobalBatch(numbers, epochs, np.zeros(len(group), bool))]


def _caught(
    deliveries: Iterable[tuple[int, Delivery | Exception]],
) -> Iterator[tuple[int, Delivery | Exception]]:
    """Hand over an error instead of raising it: torch would bury what a worker raises in a traceback."""
    try:
        yield from deliveries
    except (ValueError, OSError) as error:
        yield 0, error
