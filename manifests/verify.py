"""Checks a dataset: that every shard exists and is whole, and with `deep` every byte, hash and picture.

All bytes of a shard's tar follow from its index: headers from names and sizes, data from hashes, and padding is zero. So
damage is located by shard, member and byte without trusting the tar.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from manifests.tables import as_array

NOT_MADE = "not made yet"


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


def verify(
    dataset: Dataset, deep: bool = False, checked: Callable[[], None] = lambda: None, threads: int = 1
) -> Iterator[Fault]:
    """Yield every fault of a dataset in the order of its shards, which several threads check; those not made yet included.

    `checked` is called after each shard.
    """
    committed = set(dataset.committed())

    def check(shard: int) -> list[Fault]:
        if shard in committed:
            return list(verify_shard(dataset, shard, deep))
        return [Fault(dataset.file(shard, ".tar"), NOT_MADE)]

    with ThreadPoolExecutor(threads) as pool:
        for faults in pool.map(check, range(dataset.plan.shards)):
            yield from faults
            checked()


def verify_shard(dataset: Dataset, shard: int, deep: bool) -> Iterator[Fault]:
    """Yield every fault of a shard that was committed."""
    marker = dataset.file(shard, DONE)
    try:
        done = dataset.done(shard)
    except DamagedData as error:
        yield Fault(marker, error.problem.removeprefix("is "))
        return
    if done["fingerprint"] != dataset.plan.fingerprint:
        yield Fault(marker, "belongs to a dataset with another plan")
        return
    # Older commit records list no meshes.
    meshes = (_file_fault(dataset, file, record, deep) for file, record in done.get("meshes", {}).items())
    yield from (fault for fault in meshes if fault is not None)
    tar, damaged = dataset.file(shard, ".tar"), []
    for suffix, record in done["files"].items():
        if fault := _file_fault(dataset, dataset.file(shard, suffix), record, deep):
            damaged.append(suffix)
            # What is wrong within a tar is located below.
            if suffix != ".tar" or fault.problem == "missing":
                yield fault
    is_altered = ".tar" in damaged and dataset.storage.exists(tar)
    if ".views.parquet" in damaged:
        if is_altered:
            yield Fault(tar, "damaged, and the index that would say where is damaged too")
        return
    try:
        views = dataset.views(shard)
        identities = dataset.identities(shard) if ".identities.parquet" not in damaged else None
    except DamagedData as error:
        yield Fault(error.file, error.problem)
        return
    if is_altered:
        yield from _locate(dataset, tar, views.to_pylist(), done["files"][".tar"]["size"])
    if identities is not None:
        yield from _verify_counts(dataset, shard, views, identities)
    if deep and ".tar" not in damaged:
        yield from _verify_content(dataset, shard, views)


def _file_fault(dataset: Dataset, file: str, record: dict[str, Any], deep: bool) -> Fault | None:
    """The fault of a file whose size or, with `deep`, hash differs from the commit record; None if it has none."""
    if not dataset.storage.exists(file):
        return Fault(file, "missing")
    if (size := dataset.storage.size(file)) != record["size"]:
        return Fault(file, f"has {size} bytes, was written with {record['size']}", byte=min(size, record["size"]))
    return Fault(file, "its bytes were changed") if deep and sha256_of(dataset, file) != record["sha256"] else None


def _locate(dataset: Dataset, tar: str, rows: list[dict[str, Any]], size: int) -> Iterator[Fault]:
    """Yield the places where a tar differs from its index; a cut is reported once, with the member it falls in."""
    there, found = dataset.storage.size(tar), False
    with dataset.storage.open(tar) as file:
        for member, offset, expected in _layout(dataset, rows, size):
            length = len(expected) if isinstance(expected, bytes) else expected["size"]
            file.seek(offset)
            data = file.read(length)
            if len(data) < length:
                yield Fault(tar, f"is cut: has {there} bytes, was written with {size}", member, there)
                return
            if isinstance(expected, bytes):
                if data != expected:
                    found = True
                    yield Fault(tar, "was changed", member, offset + len(os.path.commonprefix([data, expected])))
            elif hashlib.sha256(data).digest() != expected["sha256"]:
                found = True
                yield Fault(tar, f"was changed between bytes {offset} and {offset + length}", member, offset)
    if there > size:
        yield Fault(tar, f"has {there - size} bytes too many", byte=size)
    elif not found:
        yield Fault(tar, "its bytes do not give the hash it was committed with")


def _layout(
    dataset: Dataset, rows: list[dict[str, Any]], size: int
) -> Iterator[tuple[str, int, bytes | dict[str, Any]]]:
    """Every part of the tar in order: member, offset, and the exact bytes or the entry of the index with size and hash."""
    end = 0
    for row in rows:
        for name in dataset.plan.member_names:
            entry, member = row[name], member_name(row["key"], dataset.plan.members[name])
            header = tar_header(member, entry["size"])
            yield member, entry["offset"] - len(header), header
            yield member, entry["offset"], entry
            end = entry["offset"] + entry["size"]
            yield member, end, bytes(padding(entry["size"]))
            end += padding(entry["size"])
    yield "end of archive", end, bytes(size - end)


def _verify_counts(dataset: Dataset, shard: int, views: pa.Table, identities: pa.Table) -> Iterator[Fault]:
    """Yield identities without a row, or whose row has another number of views than there are."""
    file = dataset.file(shard, ".identities.parquet")
    if identities.column("identity").to_pylist() != list(dataset.plan.identities_of(shard)):
        yield Fault(file, "does not hold the identities of the plan")
        return
    found, counts = np.unique(as_array(views.column("identity")), return_counts=True)
    views_of = dict(zip(found.tolist(), counts.tolist(), strict=True))
    for row in identities.select(["identity", "views"]).to_pylist():
        if (count := views_of.get(row["identity"], 0)) != row["views"]:
            yield Fault(file, f"identity {row['identity']} has {count} views, its row has {row['views']}")


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
