"""MosaicML streaming: MDS shards on a local disk, its default shuffle, its StreamingDataLoader."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import streaming
from harness import FIELDS, Ask, Sample, collated, decoder, per_shard, run, uncollated
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

VERSION = streaming.__version__


def convert(samples: list[Sample], folder: Path) -> None:
    columns = {"key": "str", "jpg": "bytes", "json": "bytes"}
    # A shard is bounded by bytes: those of its share of the samples, with what the format adds.
    each = max(len(key) + len(picture) + len(text) for key, picture, text in samples) + 16
    with MDSWriter(out=str(folder), columns=columns, size_limit=each * per_shard(len(samples))) as writer:
        for sample in samples:
            writer.write(dict(zip(FIELDS, sample, strict=True)))


class Samples(StreamingDataset):
    """Decoding belongs into __getitem__ (their guide to custom datasets); their own jpeg column is Pillow too."""

    def __init__(self, ask: Ask):
        # "batch_size: per device", and it must be told to both (their guide to resumption).
        super().__init__(
            local=ask.folder, shuffle=ask.shuffle, shuffle_seed=ask.seed, batch_size=ask.batch // ask.world
        )
        self.decode = decoder(ask)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return sample["key"], self.decode(sample["jpg"]), sample["json"]


def stream(ask: Ask) -> Iterator[Sample]:
    return iter(Samples(ask))


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask):
        if ask.world == 1:
            clean_stale_shared_memory()
        self.loader = StreamingDataLoader(
            Samples(ask),
            batch_size=ask.batch // ask.world,
            num_workers=ask.workers,
            collate_fn=partial(collated, how=ask.collate, stack=bool(ask.decode)),
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    unpack = staticmethod(uncollated)

    def state(self) -> bytes:
        return json.dumps(self.loader.state_dict()).encode()

    def resume(self, folder: str) -> None:
        # "This is called on rank zero": one state for all.
        self.loader.load_state_dict(json.loads(Path(folder, "0").read_text()))


def open_loader(ask: Ask) -> Loading:
    return Loading(ask)


def getter(ask: Ask):
    samples = Samples(ask)
    return samples.__getitem__, len(samples)


if __name__ == "__main__":
    run(sys.modules[__name__])
