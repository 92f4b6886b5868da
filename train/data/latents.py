"""Caches the latents of a dataset: the job over all shards, and its worker."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64
from torch import Tensor

from jobs import pool
from jobs.devices import require_device
from jobs.ledger import Ledger
from jobs.progress import JobProgress
from jobs.units import Event, Unit
from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import Index, open_index
from manifests.latents import PARTS, Record, Unusable, identity_background, read_record, write_latents
from manifests.reader import Reader
from manifests.scores import tar_sha256
from manifests.storage import Storage
from train.data.config import LatentsConfig
from train.data.sources import PixelSource
from train.networks.model import load_vae
from weights.files import absolute

MEMBERS = ("rgb", "alpha", "normal")

Pictures = Float32[Tensor, "v 3 3 h w"]


def make_latents(config: LatentsConfig) -> list[str]:
    """Encode the shards that have no latents yet, or were made again since.

    Returns:
        One line per reason why shards are not encoded, such as that `spinset generate` made them meanwhile.

    Raises:
        MissingFile: there is no dataset, or no autoencoder.
        UserError: the autoencoder does not fit the dataset, or a member is missing.
        DamagedData: a picture does not decode.
    """
    if config.pool.ray == "local":
        require_device(config.device)
    dataset = Dataset(config.out)
    vae = load_vae(config.vae)
    if dataset.plan.resolution % vae.factor:
        raise UserError(
            f"--vae {config.vae} makes one latent of {vae.factor} x {vae.factor} px; the dataset has "
            f"{dataset.plan.resolution} px, which is no multiple of it"
        )
    if dataset.plan.background != "white":
        raise UserError(
            f"the pictures of {config.out} lie over {dataset.plan.background}; latents are made of white ones"
        )
    if not dataset.committed():
        return ["no shard of the dataset is finished, so there is nothing to encode"]
    index = open_index(dataset)
    _check_members(index)
    dataset.storage.clear_leftovers()
    heads = {shard: dataset.done(shard)["outcomes"][schema.KEPT] for shard in dataset.committed()}
    # Workers of a running cluster have another working directory.
    out = dataset.storage.root if dataset.storage.is_local else config.out
    config = replace(config, out=out, vae=absolute(config.vae))
    pending = [shard for shard in heads if _is_due(dataset, vae.sha256, shard)]
    ledger = Ledger(dataset.storage, "latents", lambda shard: not _is_due(dataset, vae.sha256, shard))
    with JobProgress(
        "latents", sum(heads.values()), sum(heads[s] for s in heads if s not in pending), items_of=heads.__getitem__
    ) as progress:
        pool.run(pending, partial(LatentsWorker, config), config.pool, progress.update, ledger)
    lacking = [shard for shard in dataset.committed() if _is_due(dataset, vae.sha256, shard)]
    return [f"shards {', '.join(map(str, lacking))} were made since"] if lacking else []


def _is_due(dataset: Dataset, vae_sha256: str, shard: int) -> bool:
    try:
        read_record(dataset, vae_sha256, shard)
    except Unusable:
        return True
    return False


def _check_members(index: Index) -> None:
    for member in MEMBERS:
        if len(lacking := np.flatnonzero(index.size[member] == 0)):
            key = schema.sample_key(int(index.identity[lacking[0]]), int(index.view[lacking[0]]))
            raise UserError(
                f"{len(lacking)} of {len(index)} views have no {member} (first: {key}); "
                f"latents are made of {', '.join(MEMBERS)}"
            )


class Chunk(NamedTuple):
    """Views of one identity that are encoded at once."""

    identity: int
    rows: Int64[np.ndarray, " v"]
    done: int
    """Number of views of the identity before these."""
    total: int
    """Number of all views of the identity."""


class LatentsWorker:
    """Encodes shards, a few views at a time; a thread reads and decodes the next ones meanwhile."""

    def __init__(self, config: LatentsConfig):
        torch.set_num_threads(config.pool.threads)
        self.config, self.dataset = config, Dataset(Storage(config.out))
        self.vae = load_vae(config.vae, config.device)
        self.index = open_index(self.dataset)
        side = self.dataset.plan.resolution
        self.pixels = PixelSource(Reader(self.dataset, self.index), side, side)
        self.executor = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def run(self, unit: Unit) -> Generator[Event, None, None]:
        """Encode one shard and commit its latents."""
        if unit.skipped:
            identity, reason = next(iter(unit.skipped.items()))
            raise UserError(f"identity {identity} cannot be encoded: {reason}")
        shard, chunks = unit.index, self._chunks(unit.index)
        with write_latents(self.dataset, shard, self._record(shard, chunks)) as append:
            for chunk, pictures in self._decoded(chunks):
                yield Event(shard, chunk.identity, "encode", chunk.done, chunk.total)
                append(self._encode(chunk, pictures))
                yield Event(shard, chunk.identity, "encode", chunk.done + len(chunk.rows), chunk.total)

    def _chunks(self, shard: int) -> list[Chunk]:
        rows = np.arange(self.index.first_row(shard), self.index.first_row(shard + 1))
        identities = self.index.identity[rows]
        chunks = []
        for own in np.split(rows, np.flatnonzero(np.diff(identities)) + 1) if len(rows) else ():
            identity, step = int(self.index.identity[own[0]]), self.config.batch
            chunks += [Chunk(identity, own[k : k + step], k, len(own)) for k in range(0, len(own), step)]
        return chunks

    def _record(self, shard: int, chunks: Sequence[Chunk]) -> Record:
        plan, side = self.dataset.plan, self.dataset.plan.resolution // self.vae.factor
        views = sum(len(chunk.rows) for chunk in chunks)
        return Record(
            dataset=plan.fingerprint,
            tar_sha256=tar_sha256(self.dataset, shard),
            vae_sha256=self.vae.sha256,
            scaling_factor=self.vae.scaling_factor,
            shape=(views, len(PARTS), 2, self.vae.channels, side, side),
            backgrounds={str(chunk.identity): identity_background(plan.seed, chunk.identity) for chunk in chunks},
        )

    def _decoded(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Pictures]]:
        """Chunks with their pictures, of which one is decoded ahead."""
        running: deque[tuple[Chunk, Future[Pictures]]] = deque()
        for chunk in chunks:
            running.append((chunk, self.executor.submit(self._pictures, chunk)))
            if len(running) > 1:
                first, pictures = running.popleft()
                yield first, pictures.result()
        for last, pictures in running:
            yield last, pictures.result()

    def _pictures(self, chunk: Chunk) -> Pictures:
        """The pictures that PARTS are encoded from, in [-1, 1], as the loader delivers them."""
        rows, white = chunk.rows[None], np.ones((1, 3), np.float32)
        colour = np.array([identity_background(self.dataset.plan.seed, chunk.identity)], np.float32) / 255
        over_white = self.pixels.read(rows, white, ("rgb", "normal"))
        over_colour = self.pixels.read(rows, colour, ("rgb",))
        return torch.stack([over_white["rgb"], over_colour["rgb"], over_white["normal"]], 2)[0]

    def _encode(self, chunk: Chunk, pictures: Pictures) -> Float16[np.ndarray, "v p 2 c _ _"]:
        posterior = self.vae.posterior(pictures.flatten(0, 1)).half().cpu()
        if not posterior.isfinite().all():
            raise UserError(f"the latents of identity {chunk.identity} do not fit float16; is --vae the right one?")
        return posterior.unflatten(0, pictures.shape[:2]).numpy()
