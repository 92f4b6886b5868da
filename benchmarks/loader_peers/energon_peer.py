"""megatron-energon: tars prepared by its own tool, its train dataset and savable loader."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from harness import Ask, NotOffered, Sample, collated, decoder, per_shard, run, uncollated
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    get_loader,
    get_savable_loader,
    get_train_dataset,
    get_val_dataset,
    stateless,
)
from megatron.energon.cache.file_store import WebdatasetFileStore
from megatron.energon.epathlib import EPath

VERSION = version("megatron-energon")
BUFFER, SEQUENCE = 1000, 100
"""webdataset's buffer; shards are cut into sequences as in its quickstart."""
ENERGON = [sys.executable, "-m", "megatron.energon.cli.main"]


def convert(samples: list[Sample], folder: Path) -> None:
    folder.mkdir(parents=True)
    with wds.ShardWriter(
        f"{folder}/samples-%06d.tar", maxcount=per_shard(len(samples)), maxsize=10**12, verbose=0
    ) as writer:
        for key, picture, text in samples:
            writer.write({"__key__": key, "jpg": picture, "json": text})
    # All samples in both parts: train is shuffled and val is not.
    split = ["--split-parts", "train:.*", "--split-parts", "val:.*"]
    prepare = [*ENERGON, "prepare", "--non-interactive", "--no-progress", *split, "--sample-type", "CrudeWebdataset"]
    subprocess.run([*prepare, str(folder)], check=True, stdout=sys.stderr)


@stateless
def as_it_is(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


class Encoder(DefaultTaskEncoder):
    """Samples are cooked from crude ones and batched by the task encoder (its guide to crude data)."""

    cookers = [Cooker(as_it_is)]  # noqa: RUF012
    decoder = None
    """Its own decoder is Pillow; it runs in encode_sample here, where keys are at hand."""

    def __init__(self, ask: Ask):
        super().__init__()
        self.ask, self.decode = ask, decoder(ask)

    @stateless
    def encode_sample(self, sample: dict[str, Any]) -> Any:
        # Its keys begin with the name of the tar.
        return sample["__key__"].rsplit("/", 1)[-1], self.decode(sample["jpg"]), sample["json"]

    @stateless
    def batch(self, samples: list[Any]) -> Any:
        return collated(samples, self.ask.collate, stack=bool(self.ask.decode))


def dataset(ask: Ask, workers: int) -> Any:
    config = WorkerConfig(rank=ask.rank, world_size=ask.world, num_workers=workers, seed_offset=ask.seed)
    shared = {"worker_config": config, "batch_size": ask.micro or ask.batch // ask.world, "task_encoder": Encoder(ask)}
    if not ask.shuffle:
        return get_val_dataset(ask.folder, **shared)
    return get_train_dataset(
        ask.folder, shuffle_buffer_size=BUFFER, max_samples_per_sequence=SEQUENCE, repeat=False, **shared
    )


def stream(ask: Ask) -> Iterator[Sample]:
    return (sample for batch in get_loader(dataset(ask, 0)) for sample in batch)


class Loading:
    """Batches of one rank."""

    def __init__(self, ask: Ask):
        self.ask = ask
        self.loader = get_savable_loader(dataset(ask, ask.workers))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    unpack = staticmethod(uncollated)

    def state(self) -> bytes:
        torch.save(self.loader.save_state_rank(), file := Path(self.ask.state, f"rank{self.ask.rank}.pt"))
        return file.read_bytes()

    def resume(self, folder: str) -> None:
        files = sorted(Path(folder).glob("rank*.pt"))
        if len(files) != self.ask.world and len(files) == 1:
            raise NotOffered("its tool finds no pattern in the name of a single state")
        if len(files) != self.ask.world:
            files = redistributed(files, self.ask)
        # Pickled objects, which is how its guide saves them; they were written a moment ago.
        state = torch.load(files[self.ask.rank], weights_only=False)  # noqa: TID251
        self.loader.restore_state_rank(state)


def redistributed(files: list[Path], ask: Ask) -> list[Path]:
    """The work of `energon checkpoint redist`; each rank makes its own copy."""
    out = files[0].parent / f"redistributed-{ask.rank}"
    out.mkdir()
    line = [*ENERGON, "checkpoint", "redist", "--new-world-size", str(ask.world), *map(str, files), str(out)]
    subprocess.run(line, check=True, stdout=sys.stderr)
    return sorted(out.glob("rank*.pt"))


def open_loader(ask: Ask) -> Loading:
    if ask.task in ("save", "resume"):
        # It resumes exactly where the dataset repeats, as it does by default; an epoch that ends (repeat=False) does not
        # resume in it, so repeated and missing samples of an epoch are no measure of it.
        raise SystemExit("not measured: exact continuation where the dataset repeats, other samples where it ends")
    if ask.task == "resume" and ask.workers == 3:
        raise NotOffered("ranks times workers must stay what they were")
    return Loading(ask)


def getter(ask: Ask):
    store = WebdatasetFileStore(EPath(ask.folder))
    names = sorted(key for key, *_ in store.list_all_samples())

    def get(number: int) -> Sample:
        key = names[number]
        return key, store[f"{key}.jpg"][0], store[f"{key}.json"][0]

    return get, len(names)


if __name__ == "__main__":
    run(sys.modules[__name__])
