"""litdata: optimised chunks on a local disk, StreamingDataset and StreamingDataLoader."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
from harness import FIELDS, Ask, Sample, by_torchvision, collated, decoder, per_shard, run, uncollated
from litdata import StreamingDataLoader, StreamingDataset

VERSION = litdata.__version__


def _as_it_is(sample: Sample) -> dict[str, Any]:
    return dict(zip(FIELDS, sample, strict=True))


def convert(samples: list[Sample], folder: Path) -> None:
    # One worker keeps the samples in their order.
    size = per_shard(len(samples))
    litdata.optimize(_as_it_is, samples, str(folder), chunk_size=size, num_workers=1, keep_data_ordered=True)


class Samples(StreamingDataset):
    """Its serializer of JPEG decodes with torchvision, so that is its own decoder."""

    def __init__(self, ask: Ask):
        # Its default shuffles blocks of samples within a chunk, for speed; the table of identities shows what that costs.
        super().__init__(ask.folder, shuffle=ask.shuffle, seed=ask.seed, drop_last=False)
        self.decode = decoder(ask, by_torchvision)

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return sample["key"], self.decode(sample["jpg"]), sample["json"]


def stream(ask: Ask) -> Iterator[Sample]:
    return iter(Samples(ask))


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask):
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
        self.loader.load_state_dict(json.loads(Path(folder, "0").read_text()))


def open_loader(ask: Ask) -> Loading:
    return Loading(ask)


def getter(ask: Ask):
    samples = Samples(ask)
    return samples.__getitem__, len(samples)


if __name__ == "__main__":
    run(sys.modules[__name__])
