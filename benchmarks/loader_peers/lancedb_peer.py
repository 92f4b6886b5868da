"""LanceDB: a table on a local disk, its StreamingDataset and StreamingDataLoader."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from harness import FIELDS, Ask, Sample, by_torchvision, collated, decoder, per_shard, run, uncollated
from lancedb.permutation import Permutation
from lancedb.streaming import StreamingDataLoader, StreamingDataset

VERSION = lancedb.__version__
TABLE = "samples"
SPLITS = {64: 16, 48: 48}
"""By batch. Its guide: for equal steps on other ranks, a batch is a multiple of the splits, and these one of ranks times
workers. Rows that do not fill a cycle of all splits are dropped; of these samples there are none."""
FILTERS = {"even": "view % 2 = 0"}


def convert(samples: list[Sample], folder: Path) -> None:
    database, size = lancedb.connect(folder), per_shard(len(samples))
    for begin in range(0, len(samples), size):
        columns = dict(zip(FIELDS, zip(*samples[begin : begin + size], strict=True), strict=True))
        views = [json.loads(text)["view"] for text in columns["json"]]
        fragment = pa.table({**{name: list(column) for name, column in columns.items()}, "view": views})
        if begin:
            database.open_table(TABLE).add(fragment)
        else:
            database.create_table(TABLE, fragment)


def opened(ask: Ask) -> Any:
    return lancedb.connect(ask.folder).open_table(TABLE)


def taken(rows: pa.RecordBatch, decode: Any) -> list[tuple[str, Any, bytes]]:
    """Its transforms get many rows, in threads."""
    keys, pictures, texts = (rows.column(name).to_pylist() for name in FIELDS)
    return list(zip(keys, map(decode, pictures), texts, strict=True))


def dataset(ask: Ask, splits: int) -> StreamingDataset:
    return StreamingDataset(
        opened(ask),
        num_splits=splits,
        shuffle=ask.shuffle,
        shuffle_seed=ask.seed,
        rank=ask.rank,
        world_size=ask.world,
        columns=list(FIELDS),
        filter=FILTERS.get(ask.selection),
        # Its guide recommends what releases the interpreter's lock, such as torchvision.
        transform=partial(taken, decode=decoder(ask, by_torchvision)),
    )


def stream(ask: Ask) -> Iterator[Sample]:
    # Splits take turns, so only a single one keeps the order of the table.
    return iter(dataset(ask, SPLITS[ask.batch] if ask.shuffle else 1))


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask):
        self.dataset, size = dataset(ask, SPLITS[ask.batch]), ask.batch // ask.world
        if ask.task in ("save", "resume", "uninterrupted"):
            # A batch comes from the splits of one worker, so a step is one from each, and only then is there a state.
            size //= ask.workers
        self.loader = StreamingDataLoader(
            self.dataset,
            batch_size=size,
            num_workers=ask.workers,
            collate_fn=partial(collated, how=ask.collate, stack=bool(ask.decode)),
            # "because LanceDB uses internal threads".
            multiprocessing_context="forkserver" if ask.workers else None,
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    unpack = staticmethod(uncollated)

    def state(self) -> bytes:
        return json.dumps(self.dataset.state_dict()).encode()

    def resume(self, folder: str) -> None:
        # Each rank knows its own splits alone.
        states = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
        self.dataset.load_state_dict(StreamingDataset.merge_state_dicts(states))


def open_loader(ask: Ask) -> Loading:
    return Loading(ask)


def getter(ask: Ask):
    rows = Permutation.identity(opened(ask)).select_columns(list(FIELDS))

    def get(number: int) -> Sample:
        (row,) = rows[number]
        return row["key"], row["jpg"], row["json"]

    return get, rows.num_rows


if __name__ == "__main__":
    run(sys.modules[__name__])
