"""Cached latents of a dataset: their files, their layout, and the record that commits those of a shard.

In a folder per autoencoder, each shard has a plain .npy of float16 [views, 3, 2, c, h, w]: the views in the order of the
views table, the PARTS of each, and the mean and standard deviation of each part. The record is written last.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float16

from manifests import schema
from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.errors import UserError
from manifests.scores import tar_sha256

FOLDER = "latents"
VERSION = 1

PARTS = ("white", "coloured", "normal")
"""The picture over white, the picture over a background colour of the identity, and the normals."""

DTYPE = np.dtype("<f2")


class Unusable(UserError):
    """The latents of a shard are missing, damaged or outdated, which the message states."""


@dataclass(frozen=True)
class Record:
    """The record that commits the latents of a shard: their dataset, shard and autoencoder, and their layout."""

    dataset: str
    """The fingerprint of the plan."""
    tar_sha256: str
    vae_sha256: str
    scaling_factor: float
    shape: tuple[int, ...]
    """The shape of the array."""
    backgrounds: dict[str, list[int]]
    """The colour of each identity, 0 to 255."""
    version: int = VERSION


def identity_background(seed: int, identity: int) -> list[int]:
    """The background colour of all views of an identity, 0 to 255."""
    return generator(seed, "latent background", identity).integers(0, 256, 3).tolist()


def short_name(vae_sha256: str) -> str:
    """The name of the folder of an autoencoder's latents."""
    return vae_sha256[:16]


def latents_file(vae_sha256: str, shard: int) -> str:
    return f"{FOLDER}/{short_name(vae_sha256)}/{schema.shard_name(shard)}.npy"


def record_file(vae_sha256: str, shard: int) -> str:
    return f"{FOLDER}/{short_name(vae_sha256)}/{schema.shard_name(shard)}.json"


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": DTYPE.str, "fortran_order": False, "shape": shape})
    return out.getvalue()


def file_size(shape: tuple[int, ...]) -> int:
    return len(npy_header(shape)) + int(np.prod(shape)) * DTYPE.itemsize


@contextmanager
def write_latents(dataset: Dataset, shard: int, record: Record) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends views, and commit them at the end; an error before that leaves nothing behind."""
    written = 0

    def append(views: Float16[np.ndarray, "v 3 2 c h w"]) -> None:
        nonlocal written
        assert views.shape[1:] == record.shape[1:], (views.shape, record.shape)
        out.write(np.ascontiguousarray(views, DTYPE).data)
        written += len(views)

    with dataset.storage.writing(latents_file(record.vae_sha256, shard)) as scratch:
        with scratch.open("wb") as out:
            out.write(npy_header(record.shape))
            yield append
        assert written == record.shape[0], (written, record.shape)
    dataset.storage.write_json(record_file(record.vae_sha256, shard), asdict(record))


def read_record(dataset: Dataset, vae_sha256: str, shard: int) -> Record:
    """The record of a shard's latents; raises Unusable unless they are whole, of this autoencoder and of the shard as it is."""
    try:
        fields = json.loads(dataset.storage.read(record_file(vae_sha256, shard)))
        record = Record(**{**fields, "shape": tuple(fields["shape"])})
        size = dataset.storage.size(latents_file(vae_sha256, shard))
    except FileNotFoundError:
        raise Unusable("missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"damaged ({type(error).__name__}: {error})") from None
    if record.version != VERSION or record.vae_sha256 != vae_sha256:
        raise Unusable("of another version or autoencoder")
    if record.dataset != dataset.plan.fingerprint:
        raise Unusable("of another dataset")
    if record.tar_sha256 != tar_sha256(dataset, shard):
        raise Unusable("older than the shard")
    if size != file_size(record.shape):
        raise Unusable("cut short")
    return record


def caches(dataset: Dataset) -> list[str]:
    """The folder names of the autoencoders with cached latents."""
    return dataset.storage.names(FOLDER)
