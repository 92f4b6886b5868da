"""The contents of views: stored pictures, composited over a drawn background, stored bytes, or draws from cached latents."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float16, Float32, Int, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from manifests import schema
from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.errors import MissingFile, UserError, damaged
from manifests.index import Index, Subset
from manifests.latents import DTYPE, PARTS, Record, Unusable, caches, latents_file, npy_header, read_record, short_name
from manifests.pictures import decode_picture
from manifests.reader import Reader
from manifests.storage import Storage
from train.batch import Key, Source
from train.data.config import LoaderConfig
from train.networks.model import vae_sha256


@dataclass(frozen=True, eq=False)
class PixelSource:
    """Reads pictures of views at one resolution, as floats in [-1, 1] or as bytes, and arrays (.npy) as they are stored."""

    reader: Reader
    stored: int
    """Side of the stored pictures, in pixels."""
    resolution: int
    """Side of the pictures that are read, in pixels."""
    as_uint8: bool = False
    lineage = ""

    def read(
        self,
        rows: Int[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key] = (),
    ) -> dict[str, Shaped[Tensor, "b v *_"]]:
        """Read members by name; rgb is composited over the background in [0, 1], other members keep theirs.

        Raises:
            DamagedData: a member does not read or decode.
        """
        coloured = np.flatnonzero((background != 1).any(1)) if "rgb" in members else np.empty(0, np.int64)
        wants = dict.fromkeys(members, rows)
        if len(coloured):
            wants["alpha"] = rows if "alpha" in members else rows[coloured]
        data = self.reader.read({name: own.ravel() for name, own in wants.items()})
        arrays = {name for name in members if self.reader.extensions[name].endswith("npy")}
        pictures = {name: self._pictures(name, own, data[name]) for name, own in wants.items() if name not in arrays}
        if len(coloured):
            alpha = pictures["alpha"][coloured] if "alpha" in members else pictures["alpha"]
            rgb = over(pictures["rgb"][coloured].float(), alpha.float(), torch.from_numpy(background[coloured]))
            pictures["rgb"][coloured] = rgb if pictures["rgb"].is_floating_point() else rgb.round_().byte()
        return {
            name: self._arrays(name, rows, data[name]) if name in arrays else self._scaled(pictures[name])
            for name in members
        }

    def _arrays(self, member: str, rows: Int[np.ndarray, "b v"], data: Sequence[bytes]) -> Shaped[Tensor, "b v *d"]:
        arrays = []
        for row, encoded in zip(rows.ravel().tolist(), data, strict=True):
            try:
                arrays.append(np.load(io.BytesIO(encoded)))
            except (ValueError, EOFError):
                raise self.reader.bad(member, row, "does not decode") from None
            if arrays[-1].shape != arrays[0].shape:
                raise self.reader.bad(member, row, f"has the shape {arrays[-1].shape}, another {arrays[0].shape}")
        return torch.from_numpy(np.stack(arrays)).unflatten(0, rows.shape)

    def _pictures(
        self, member: str, rows: Int[np.ndarray, "b v"], data: Sequence[bytes]
    ) -> Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]:
        """Decode pictures, in [0, 255]: as bytes if they stay bytes, otherwise as floats."""
        decoded = np.empty((rows.size, 1 if member == "alpha" else 3, self.stored, self.stored), np.uint8)
        for out, row, encoded in zip(decoded, rows.ravel().tolist(), data, strict=True):
            try:
                picture = decode_picture(encoded, grey=member == "alpha")
            except ValueError as error:
                raise self.reader.bad(member, row, str(error)) from None
            height, width = picture.shape[:2]
            if (height, width) != (self.stored, self.stored):
                raise self.reader.bad(member, row, f"is {width} x {height} px, the dataset has {self.stored}")
            cv2.split(picture, list(out))
        pictures = torch.from_numpy(decoded)
        if self.resolution != self.stored:
            # A triangle filter does not overshoot, so alpha and plain backgrounds stay exact.
            size = (self.resolution, self.resolution)
            pictures = interpolate(pictures.float(), size, mode="bilinear", antialias=True)
        elif not self.as_uint8:
            pictures = pictures.float()
        return pictures.unflatten(0, rows.shape)

    def _scaled(
        self, pictures: Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]
    ) -> Float32[Tensor, "b v c h w"] | UInt8[Tensor, "b v c h w"]:
        if not self.as_uint8:
            return pictures.div_(127.5).sub_(1)
        return pictures.round_().byte() if pictures.is_floating_point() else pictures


def over(
    rgb: Float32[Tensor, "b v 3 h w"], alpha: Float32[Tensor, "b v 1 h w"], colour: Float32[Tensor, "b 3"]
) -> Float32[Tensor, "b v 3 h w"]:
    """Composite pictures that lie over white over another colour in [0, 1]; pictures and alpha are in [0, 255]."""
    return (rgb + (255 - alpha) * (colour[:, None, :, None, None] - 1)).clamp(0, 255)


@dataclass(frozen=True, eq=False)
class EncodedSource:
    """Reads members as they are stored, without decoding them."""

    reader: Reader
    lineage = ""

    def read(
        self,
        rows: Int[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key] = (),
    ) -> dict[str, dict[str, list[bytes]]]:
        return {"data": self.reader.read({name: rows.ravel() for name in members})}


def open_stored(dataset: Dataset, subset: Subset, reader: Reader, config: LoaderConfig) -> Source:
    """Open the stored members of a dataset; raises UserError unless all of them exist."""
    stored, resolution = dataset.plan.resolution, config.resolution or dataset.plan.resolution
    if resolution > stored:
        raise UserError(f"--loader.resolution is {resolution}; the dataset has {stored} px, give at most that")
    if unknown := sorted(set(config.members) - set(dataset.plan.members)):
        known = ", ".join(name for name in dataset.plan.member_names if name != "json" or not config.decode)
        raise UserError(f"--loader.members hold {unknown[0]}; the dataset has {known}")
    needed = set(config.members)
    if "rgb" in needed and config.random_background and config.decode:
        needed.add("alpha")
        if dataset.plan.background != "white":
            raise UserError(
                f"the pictures lie over {dataset.plan.background}, other backgrounds are composited from white ones; give "
                "--loader.random-background 0, or generate with --background white"
            )
    for member in sorted(needed):
        lacking = np.flatnonzero(subset.index.size[member][subset.rows] == 0)
        if len(lacking):
            key = subset.index.key(int(subset.rows[lacking[0]]))
            problem = f"{len(lacking)} of {len(subset.rows)} views have no {member} (first: {key})"
            hint = "--loader.random-background 0 does without" if member == "alpha" else "load other --loader.members"
            raise UserError(f"{problem}; {hint}")
    return PixelSource(reader, stored, resolution, config.as_uint8) if config.decode else EncodedSource(reader)


THREADS = 16
WHITE, COLOURED, NORMAL = range(len(PARTS))


def open_latents(dataset: Dataset, subset: Subset, config: LoaderConfig, sample: bool = True) -> "LatentSource":
    """Open the latents that the autoencoder `config.latents` made of a dataset; without `sample` their means are read.

    Raises:
        MissingFile: there is no such autoencoder.
        UserError: its latents are missing or not of these shards, or the config has options that need pixels.
    """
    vae = config.latents
    _check(config, dataset.plan.resolution)
    sha256, index = vae_sha256(vae), subset.index
    again = f"run spinset latents {dataset.storage.url} --vae {vae}"
    if short_name(sha256) not in (there := caches(dataset)):
        others = f" (but of {', '.join(there)})" if there else ""
        raise UserError(f"{vae} has no latents, its name there would be {short_name(sha256)}{others}; {again}")
    records = _records(dataset, sha256, np.unique(index.shard[subset.rows]).tolist(), again)
    some = next(iter(records.values()))
    view_bytes = int(np.prod(some.shape[1:])) * DTYPE.itemsize
    origin = np.zeros(dataset.plan.shards, np.int64)
    for shard, record in records.items():
        origin[shard] = len(npy_header(record.shape)) - index.first_row(shard) * view_bytes
    return LatentSource(
        url=dataset.storage.url,
        index=index,
        vae_sha256=sha256,
        scaling_factor=some.scaling_factor,
        shape=some.shape[2:],
        origin=origin,
        colours={int(i): colour for record in records.values() for i, colour in record.backgrounds.items()},
        sample=sample,
    )


@dataclass(frozen=True, eq=False)
class LatentSource:
    """Latents of views by their rows in the index, times the autoencoder's scaling factor; made by `open_latents`."""

    url: str
    index: Index
    vae_sha256: str
    scaling_factor: float
    shape: tuple[int, ...]
    """Shape of one part of a view: mean and standard deviation, channels, height, width."""
    origin: Int64[np.ndarray, " s"]
    """The byte, per shard, at which row 0 of the index would begin in its file."""
    colours: dict[int, list[int]]
    """The background colour (0 to 255) of the coloured views of each identity."""
    sample: bool
    """Whether latents are drawn from the posterior; otherwise they are its mean."""

    @property
    def lineage(self) -> str:
        return f"latents {self.vae_sha256} {'drawn' if self.sample else 'means'}"

    def read(
        self,
        rows: Int64[np.ndarray, "b v"],
        background: Float32[np.ndarray, "b 3"],
        members: tuple[str, ...],
        keys: Sequence[Key],
    ) -> dict[str, Float32[Tensor, "b v c h w"] | Float32[Tensor, "b 3"]]:
        """Read members by name, and the background they have: a drawn colour becomes the one colour of the identity.

        Raises:
            DamagedData: a file ends before a view does.
            MissingFile: a file no longer exists.
        """
        coloured = (background != 1).any(1)
        parts = {"rgb": np.where(coloured, COLOURED, WHITE), "normal": np.full(len(rows), NORMAL)}
        found: dict[str, Any] = {}
        for member in members:
            posterior = torch.from_numpy(
                self._blocks(rows, np.repeat(parts[member][:, None], rows.shape[1], 1))
            ).float()
            found[member] = self._latents(posterior, rows, member, keys)
        background = background.copy()
        for position in np.flatnonzero(coloured).tolist():
            background[position] = np.array(self.colours[int(self.index.identity[rows[position, 0]])], np.float32) / 255
        return {**found, "background": torch.from_numpy(background)}

    def _latents(
        self,
        posterior: Float32[Tensor, "b v m c h w"],
        rows: Int64[np.ndarray, "b v"],
        member: str,
        keys: Sequence[Key],
    ) -> Float32[Tensor, "b v c h w"]:
        """Draw (mean + std noise) factor (Rombach et al. 2022, D.1); the noise is keyed by sample, view and member."""
        latents = posterior[:, :, 0]
        if self.sample:
            noise = np.empty((*rows.shape, *self.shape[1:]), np.float32)
            for of_sample, own, (seed, *index) in zip(noise, rows.tolist(), keys, strict=True):
                for out, row in zip(of_sample, own, strict=True):
                    generator(seed, f"latent {member}", *index, row).standard_normal(dtype=np.float32, out=out)
            latents = torch.addcmul(latents, posterior[:, :, 1], torch.from_numpy(noise))
        return latents * self.scaling_factor

    def _blocks(
        self, rows: Int64[np.ndarray, "b v"], parts: Int[np.ndarray, "b v"]
    ) -> Float16[np.ndarray, "b v m c h w"]:
        """Read one stored part of each view, and of it only the means where nothing is drawn."""
        shape = (2 if self.sample else 1, *self.shape[1:])
        found = np.empty((rows.size, *shape), DTYPE)
        shard, stride = self.index.shard[rows.ravel()], int(np.prod(self.shape)) * DTYPE.itemsize
        offset = self.origin[shard] + (rows.ravel() * len(PARTS) + parts.ravel()) * stride
        storage = Storage(self.url)
        for number in np.unique(shard).tolist():
            name, positions = latents_file(self.vae_sha256, number), np.flatnonzero(shard == number)
            try:
                lengths = _fill(storage, name, found, positions.tolist(), offset[positions].tolist())
            except FileNotFoundError as error:
                raise MissingFile(
                    f"{name} of {self.url} is gone, it was there when the run began; run spinset latents again"
                ) from error
            if len(short := np.flatnonzero(lengths < found[0].nbytes)):
                row = int(rows.ravel()[positions[short[0]]])
                key = schema.sample_key(int(self.index.identity[row]), int(self.index.view[row]))
                raise damaged(name, "is cut: the file ends before it", self.url, "spinset latents {}", key, row)
        return found.reshape(*rows.shape, *shape)


def _fill(
    storage: Storage, name: str, out: Float16[np.ndarray, "n m c h w"], positions: Sequence[int], offsets: Sequence[int]
) -> Int64[np.ndarray, " p"]:
    """Read blocks of one file into `out` at `positions`; returns the number of bytes read of each."""
    size = out[0].nbytes
    if storage.is_local:
        with open(storage.path(name), "rb", buffering=0) as file:
            pairs = zip(positions, offsets, strict=True)
            return np.array([os.preadv(file.fileno(), [out[position].data], offset) for position, offset in pairs])
    path = storage.path(name)
    ends = [offset + size for offset in offsets]
    ranges = storage.fs.cat_ranges([path] * len(offsets), offsets, ends, on_error="raise")
    for position, data in zip(positions, ranges, strict=True):
        if len(data) == size:
            out[position] = np.frombuffer(data, DTYPE).reshape(out[position].shape)
    return np.array([len(data) for data in ranges])


def _check(config: LoaderConfig, resolution: int) -> None:
    if others := sorted(set(config.members) - {"rgb", "normal"}):
        raise UserError(f"--loader.members hold {', '.join(others)}; there are latents of rgb and normal")
    if config.resolution not in (0, resolution):
        raise UserError(
            f"--loader.resolution is {config.resolution}; these are the latents of {resolution} px, drop it"
        )
    if config.as_uint8 or not config.decode:
        option = "--loader.as-uint8" if config.as_uint8 else "--loader.no-decode"
        raise UserError(f"{option} is for pixels; drop it to load latents")


def _records(dataset: Dataset, vae_sha256: str, shards: Sequence[int], again: str) -> dict[int, Record]:
    """The records of some shards; raises UserError unless all of them fit."""

    def attempt(shard: int) -> Record | Unusable:
        try:
            return read_record(dataset, vae_sha256, shard)
        except Unusable as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(shards, pool.map(attempt, shards), strict=True))
    faults = {shard: record for shard, record in found.items() if isinstance(record, Unusable)}
    if faults:
        shard, fault = next(iter(faults.items()))
        which = f"{len(faults)} of {len(shards)} shards (first: those of {schema.shard_name(shard)} are {fault})"
        raise UserError(f"there are no latents that fit {which}; {again}")
    return {shard: record for shard, record in found.items() if isinstance(record, Record)}
