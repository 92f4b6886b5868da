"""lancedb: a table on a local disk, StreamingDataset and StreamingDataLoader."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from harness import FIELDS, SHARDS, Ask, Sample, collated, decoder, per_shard, run, uncollated
from lancedb.streaming import StreamingDataLoader, StreamingDataset

VERSION = version("lancedb")
TYPES = (pa.string(), pa.binary(), pa.binary())


def convert(samples: list[Sample], folder: Path) -> None:
    # One fragment for each of our shards.
    table, size = None, per_shard(len(samples))
    for first in range(0, len(samples), size):
        columns = zip(*samples[first : first + size], strict=True)
        rows = pa.table([pa.array(column, kind) for column, kind in zip(columns, TYPES, strict=True)], names=FIELDS)
        if table is None:
            table = lancedb.connect(str(folder)).create_table("samples", rows)
        else:
            table.add(rows)


def _rows(batch: pa.RecordBatch, decode: Callable[[bytes], Any]) -> list[tuple[str, Any, bytes]]:
    keys, pictures, texts = (batch.column(name).to_pylist() for name in FIELDS)
    return list(zip(keys, map(decode, pictures), texts, strict=True))


def dataset(ask: Ask) -> StreamingDataset:
    table = lancedb.connect(ask.folder).open_table("samples")
    # A number of splits that 1, 2, 3 and 6 ranks or workers divide, as its guide asks for changes of their number.
    return StreamingDataset(
        table,
        num_splits=2 * SHARDS,
        shuffle=ask.shuffle,
        shuffle_seed=ask.seed,
        rank=ask.rank,
        world_size=ask.world,
        transform=partial(_rows, decode=decoder(ask)),
    )


def stream(ask: Ask) -> Iterator[Sample]:
    return iter(dataset(ask))


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask):
        self.dataset = dataset(ask)
        self.loader = StreamingDataLoader(
            self.dataset,
            batch_size=ask.batch // ask.world,
            num_workers=ask.workers,
            # Its threads do not survive a fork.
            multiprocessing_context="spawn" if ask.workers else None,
            collate_fn=partial(collated, how=ask.collate, stack=bool(ask.decode)),
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    unpack = staticmethod(uncollated)

    def state(self) -> bytes:
        return json.dumps(self.dataset.state_dict()).encode()

    def resume(self, folder: str) -> None:
        states = [json.loads(file.read_text()) for file in sorted(Path(folder).iterdir())]
        self.dataset.load_state_dict(StreamingDataset.merge_state_dicts(states))


def open_loader(ask: Ask) -> Loading:
    return Loading(ask)


def getter(ask: Ask) -> tuple[Callable[[int], Sample], int]:
    table = lancedb.connect(ask.folder).open_table("samples")

    def get(row: int) -> Sample:
        found = table.take_offsets([row]).to_arrow()
        return tuple(found.column(name)[0].as_py() for name in FIELDS)

    return get, table.count_rows()


if __name__ == "__main__":
    run(sys.modules[__name__])
