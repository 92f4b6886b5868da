"""webdataset as its README has it: shards and a buffer of 1,000 shuffled, batches in the workers, then mixed between them."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import webdataset as wds
from harness import Ask, NotOffered, Sample, collated, decoder, per_shard, run, uncollated

VERSION = wds.__version__
BUFFER = 1000
"""The README shuffles with 1,000."""


def convert(samples: list[Sample], folder: Path) -> None:
    folder.mkdir(parents=True)
    with wds.ShardWriter(
        f"{folder}/samples-%06d.tar", maxcount=per_shard(len(samples)), maxsize=10**12, verbose=0
    ) as writer:
        for key, picture, text in samples:
            writer.write({"__key__": key, "jpg": picture, "json": text})


def pipeline(ask: Ask) -> wds.WebDataset:
    urls = sorted(str(path) for path in Path(ask.folder).glob("*.tar"))
    # Without equal numbers of shards, split_by_node is what there is; the other advice is to resample with replacement.
    dataset = wds.WebDataset(
        urls,
        shardshuffle=100 if ask.shuffle else False,
        nodesplitter=wds.split_by_node,
        seed=ask.seed,
        empty_check=False,
    )
    if ask.shuffle:
        dataset = dataset.shuffle(BUFFER, seed=ask.seed)
    # decode("rgb8") is the documented decoder: Pillow, as an array.
    return dataset.map(partial(_taken, decode=decoder(ask)))


def _taken(sample: dict[str, Any], decode: Any) -> tuple[str, Any, bytes]:
    return sample["__key__"], decode(sample["jpg"]), sample["json"]


def stream(ask: Ask) -> Iterator[Sample]:
    return iter(pipeline(ask))


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask):
        gather = partial(collated, how=ask.collate, stack=bool(ask.decode))
        own = ask.batch // ask.world
        columns = partial(collated, how="tuple", stack=False)  # which is what unbatched() takes apart
        batches = pipeline(ask).batched(own, collation_fn=gather if ask.decode else columns)
        self.loader = wds.WebLoader(batches, batch_size=None, num_workers=ask.workers)
        if not ask.decode:
            # "a good idea to shuffle between workers": mixes samples of all workers again, in the main process.
            self.loader = self.loader.unbatched().shuffle(BUFFER).batched(own, collation_fn=gather)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    unpack = staticmethod(uncollated)

    def state(self) -> bytes:
        raise NotOffered("no state; its maintainer advises resampling")

    def resume(self, folder: str) -> None:
        raise NotOffered("no state; its maintainer advises resampling")


def open_loader(ask: Ask) -> Loading:
    return Loading(ask)


def getter(ask: Ask):
    raise NotOffered("tars are read from begin to end")


if __name__ == "__main__":
    run(sys.modules[__name__])
