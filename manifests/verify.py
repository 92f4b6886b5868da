"""Checks a dataset: that every shard exists and is whole, and with `deep` every byte, hash and picture.

All bytes of a shard's tar follow from its index: headers from names and sizes, data from hashes, and padding is zero. So
damage is located by shard, member and byte without trusting the tar.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.pictures import decode_picture
from manifests.reader import read_members
from manifests.shards import DONE, member_name, padding, tar_header


@dataclass(frozen=True)
class Fault:
    """A fault of a file: the problem, and where known the member and the byte."""

    file: str
    problem: str
    member: str | None = None
    byte: int | None = None

    def __str__(self) -> str:
        where = self.file + (f", {self.member}" if self.member else "")
        return f"{where}: {self.problem}" + (f" (byte {self.byte})" if self.byte is not None else "")


def verify(dataset: Dataset, deep: bool = False, checked: Callable[[], None] = lambda: None) -> Iterator[Fault]:
    """Yield every fault of a dataset, shards that are not made yet included; `checked` is called after each shard."""
    committed = set(dataset.committed())
    for shard in range(dataset.plan.shards):
        if shard in committed:
            yield from verify_shard(dataset, shard, deep)
        else:
            yield Fault(dataset.file(shard, ".tar"), "not made yet")
        checked()


def verify_shard(dataset: Dataset, shard: int, deep: bool) -> Iterator[Fault]:
    """Yield every fault of a shard that was committed."""
    marker = dataset.file(shard, DONE)
    try:
        done = dataset.done(shard)
    except DamagedData as error:
        yield Fault(marker, error.problem.removeprefix("is "))
        return
    expected = {suffix: (file["size"], file["sha256"]) for suffix, file in done["files"].items()}
    fingerprint = done["fingerprint"]
    if fingerprint != dataset.plan.fingerprint:
        yield Fault(marker, "belongs to a dataset with another plan")
        return
    yield from _verify_meshes(dataset, done.get("meshes", {}), deep)
    damaged = []
    for suffix, (size, sha256) in expected.items():
        file = dataset.file(shard, suffix)
        if not dataset.storage.exists(file):
            yield Fault(file, "missing")
            damaged.append(suffix)
        elif (there := dataset.storage.size(file)) != size:
            damaged.append(suffix)
            if suffix != ".tar":
                yield Fault(file, f"has {there} bytes, was written with {size}", byte=min(there, size))
        elif deep and sha256_of(dataset, file) != sha256:
            damaged.append(suffix)
            if suffix != ".tar":
                yield Fault(file, "its bytes were changed")
    tar = dataset.file(shard, ".tar")
    if ".views.parquet" in damaged:
        if ".tar" in damaged and dataset.storage.exists(tar):
            yield Fault(tar, "damaged, and the index that would say where is damaged too")
        return
    try:
        views = dataset.views(shard)
        rows = views.to_pylist()
        identities = dataset.identities(shard) if ".identities.parquet" not in damaged else None
    except DamagedData as error:
        yield Fault(error.file, error.problem)
        return
    if ".tar" in damaged and dataset.storage.exists(tar):
        yield from _locate(dataset, tar, rows, expected[".tar"][0])
    if identities is not None:
        yield from _verify_counts(dataset, shard, rows, identities)
    if deep and ".tar" not in damaged:
        yield from _verify_content(dataset, shard, views)


def _verify_meshes(dataset: Dataset, meshes: dict[str, dict[str, Any]], deep: bool) -> Iterator[Fault]:
    """Yield meshes of a shard that are missing or changed; older commit records list none."""
    for file, record in meshes.items():
        if not dataset.storage.exists(file):
            yield Fault(file, "missing")
        elif (there := dataset.storage.size(file)) != record["size"]:
            yield Fault(file, f"has {there} bytes, was written with {record['size']}", byte=min(there, record["size"]))
        elif deep and sha256_of(dataset, file) != record["sha256"]:
            yield Fault(file, "its bytes were changed")


def _locate(dataset: Dataset, tar: str, rows: list[dict[str, Any]], size: int) -> Iterator[Fault]:
    """Yield the places where a tar differs from its index; a cut is reported once, with the member it falls in."""
    there = dataset.storage.size(tar)
    found = False
    with dataset.storage.open(tar) as file:
        for member, offset, expected, sha256 in _layout(dataset, rows, size):
            file.seek(offset)
            length = len(expected) if sha256 is None else expected[0]
            data = file.read(length)
            if len(data) < length:
                yield Fault(tar, f"is cut: has {there} bytes, was written with {size}", member, there)
                return
            wrong = _first_difference(data, expected) if sha256 is None else _wrong_hash(data, sha256)
            if wrong is not None:
                found = True
                end = f" between bytes {offset} and {offset + length}" if sha256 is not None else ""
                yield Fault(tar, f"was changed{end}", member, offset + wrong)
    if there > size:
        yield Fault(tar, f"has {there - size} bytes too many", byte=size)
    elif not found:
        yield Fault(tar, "its bytes do not give the hash it was committed with")


def _layout(dataset: Dataset, rows: list[dict[str, Any]], size: int) -> Iterator[tuple[str, int, Any, bytes | None]]:
    """Every stretch of the tar in order: (member, offset, the exact bytes, None) or (member, offset, (length,), hash)."""
    end = 0
    for row in rows:
        for name in dataset.plan.member_names:
            entry, member = row[name], member_name(row["key"], dataset.plan.members[name])
            header = tar_header(member, entry["size"])
            yield member, entry["offset"] - len(header), header, None
            yield member, entry["offset"], (entry["size"],), entry["sha256"]
            end = entry["offset"] + entry["size"]
            yield member, end, bytes(padding(entry["size"])), None
            end += padding(entry["size"])
    yield "end of archive", end, bytes(size - end), None


def _first_difference(data: bytes, expected: bytes) -> int | None:
    if data == expected:
        return None
    return len(os.path.commonprefix([data, expected]))


def _wrong_hash(data: bytes, sha256: bytes) -> int | None:
    return None if hashlib.sha256(data).digest() == sha256 else 0


def _verify_counts(dataset: Dataset, shard: int, rows: list[dict[str, Any]], identities: pa.Table) -> Iterator[Fault]:
    """Yield identities without a row, or whose row has another number of views than there are."""
    file = dataset.file(shard, ".identities.parquet")
    if identities.column("identity").to_pylist() != list(dataset.plan.identities_of(shard)):
        yield Fault(file, "does not hold the identities of the plan")
        return
    views: dict[int, int] = {}
    for row in rows:
        views[row["identity"]] = views.get(row["identity"], 0) + 1
    for row in identities.select(["identity", "views"]).to_pylist():
        if views.get(row["identity"], 0) != row["views"]:
            yield Fault(
                file,
                f"identity {row['identity']} has {views.get(row['identity'], 0)} views, its row has {row['views']}",
            )


def _verify_content(dataset: Dataset, shard: int, views: pa.Table) -> Iterator[Fault]:
    """Yield pictures that do not decode at the planned size, and JSON members that disagree with the index."""
    of_identity, names = views.column("identity").to_numpy(), dataset.plan.member_names
    for identity in np.unique(of_identity).tolist():
        own = views.filter(pa.array(of_identity == identity))
        rows = own.to_pylist()
        for name, members in zip(names, read_members(dataset, shard, own, *names), strict=True):
            for row, data in zip(rows, members, strict=True):
                member = member_name(row["key"], dataset.plan.members[name])
                if problem := _wrong_content(member, data, row, dataset.plan.resolution):
                    yield Fault(dataset.file(shard, ".tar"), problem, member, row[name]["offset"])


def _wrong_content(member: str, data: bytes, row: dict[str, Any], resolution: int) -> str | None:
    match PurePosixPath(member).suffix:
        case ".json":
            return _wrong_json(data, row)
        case ".npy":
            return _wrong_array(data)
        case _:
            return _wrong_picture(data, resolution)


def _wrong_array(data: bytes) -> str | None:
    try:
        np.load(io.BytesIO(data))
    except (ValueError, EOFError) as error:
        return f"is no array ({type(error).__name__}: {error})"
    return None


def _wrong_picture(data: bytes, resolution: int) -> str | None:
    try:
        height, width = decode_picture(data).shape[:2]
    except ValueError as error:
        return str(error)
    return None if height == width == resolution else f"is {width} x {height} px, planned {resolution} px"


def _wrong_json(data: bytes, row: dict[str, Any]) -> str | None:
    try:
        view = json.loads(data)
        same = (view["identity"], view["view"]) == (row["identity"], row["view"])
    except (ValueError, KeyError, TypeError) as error:
        return f"does not parse ({type(error).__name__}: {error})"
    return None if same else f"is of identity {view['identity']} view {view['view']}"


def sha256_of(dataset: Dataset, file: str) -> str:
    """The SHA-256 of a file of a dataset."""
    with dataset.storage.open(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
