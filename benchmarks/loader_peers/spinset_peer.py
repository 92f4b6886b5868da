"""spinset itself: every sample of the epoch in a global permutation, rgb and json as stored or as uint8 pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Ask, NotOffered, Sample, run

from manifests import schema
from manifests.dataset import Dataset
from manifests.index import Index, open_index
from manifests.reader import Reader
from train.data.config import LoaderConfig
from train.data.loader import Batch, Loader
from train.data.loader import open_loader as opened

VERSION = "this tree"


def convert(samples: list[Sample], folder: Path) -> None:
    raise NotOffered("the samples come from here")


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask, workers: int):
        config = LoaderConfig(
            ask.folder,
            selection=ask.selection,
            batch=ask.batch,
            members=("rgb",) if ask.decode else ("rgb", "json"),
            random_background=0,
            seed=ask.seed,
            epochs=1,
            # All samples of the epoch; what fills up the last batch is marked.
            tail="pad",
            workers=workers,
            as_uint8=True,
            decode=bool(ask.decode),
        )
        self.loader: Loader = opened(config, ask.rank, ask.world)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def unpack(self, batch: Batch) -> Iterator[tuple[str, Any, Any]]:
        keys = [
            schema.sample_key(i, v) for i, v in zip(batch.identity.tolist(), batch.view[:, 0].tolist(), strict=True)
        ]
        pictures = batch.rgb if batch.data is None else batch.data["rgb"]
        texts = keys if batch.data is None else batch.data["json"]
        for sample, repeated in zip(zip(keys, pictures, texts, strict=True), batch.repeated.tolist(), strict=True):
            if not repeated:
                yield sample

    def state(self) -> bytes:
        return self.loader.state().to_json().encode()

    def resume(self, folder: str) -> None:
        # The same on all ranks.
        self.loader.resume(Path(folder, "0").read_text())


def open_loader(ask: Ask) -> Loading:
    # A batch is one type whatever the model wants, so there is no collate function to choose.
    return Loading(ask, ask.workers)


def stream(ask: Ask) -> Iterator[Sample]:
    if ask.shuffle:
        loading = Loading(ask, workers=0)
        return (sample for batch in loading for sample in loading.unpack(batch))
    return _in_order(ask)


def _in_order(ask: Ask) -> Iterator[Sample]:
    """As lie the shards; what score jobs do."""
    dataset = Dataset(ask.folder)
    index = open_index(dataset)
    return _stored(Reader(dataset, index), index, ask)


def _stored(reader: Reader, index: Index, ask: Ask) -> Iterator[Sample]:
    for begin in range(0, len(index), ask.batch):
        rows = np.arange(begin, min(begin + ask.batch, len(index)))
        found = reader.read({"rgb": rows, "json": rows})
        keys = map(schema.sample_key, index.identity[rows].tolist(), index.view[rows].tolist())
        yield from zip(keys, found["rgb"], found["json"], strict=True)


def getter(ask: Ask):
    dataset = Dataset(ask.folder)
    index = open_index(dataset)
    reader = Reader(dataset, index)

    def get(number: int) -> Sample:
        rows = np.array([number])
        found = reader.read({"rgb": rows, "json": rows})
        return (
            schema.sample_key(int(index.identity[number]), int(index.view[number])),
            found["rgb"][0],
            found["json"][0],
        )

    return get, len(index)


if __name__ == "__main__":
    import sys

    run(sys.modules[__name__])
