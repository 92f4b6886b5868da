"""Writes a shard: a WebDataset tar with deterministic bytes, its tables, and the record that commits them.

Order of durability: meshes where they are saved, tar, views table, identities table, then done.json. Once done.json is
there, the rest is whole; a writer that dies before leaves scratch files, which no reader looks at. A second writer of the
same shard writes the same bytes.
"""

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests import schema
from manifests.errors import damaged
from manifests.plan import Plan
from manifests.storage import Storage, naming
from manifests.tables import parquet_bytes, parquet_file

FOLDER = schema.SHARDS
SUFFIXES = (".tar", ".views.parquet", ".identities.parquet")
DONE = schema.DONE
PARKED = "work/parked"
"""The folder of shards that were begun and given back."""

_END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


def member_name(key: str, extension: str) -> str:
    return f"{key}.{extension}"


def tar_header(name: str, size: int) -> bytes:
    """The USTAR header of a member, without owner and time, which would differ between runs."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: Any) -> Any:
    """The bytes after a member of `size` bytes, a number or an array, up to a whole block."""
    return -size % tarfile.BLOCKSIZE


def stored_size(size: Any) -> Any:
    """The bytes that a member of `size` bytes, a number or an array, takes in a tar, with its header and padding."""
    return tarfile.BLOCKSIZE + size + padding(size)


def record_file(shard: int) -> str:
    """The name of the commit record of a shard."""
    return f"{FOLDER}/{schema.shard_name(shard)}{DONE}"


def reopen(storage: Storage, plan: Plan, shard: int) -> None:
    """Turn a committed shard into one that was given back, so that a writer goes on after its last identity.

    Raises:
        DamagedData: the shard is not as it was committed; nothing was changed.
    """
    name = f"{FOLDER}/{schema.shard_name(shard)}"
    done = json.loads(storage.read(f"{name}{DONE}"))
    data = {suffix: storage.read(f"{name}{suffix}") for suffix in SUFFIXES}
    if wrong := [suffix for suffix in SUFFIXES if _record(data[suffix]) != done["files"][suffix]]:
        raise damaged(f"{name}{wrong[0]}", "is damaged", storage.url)
    data[".tar"] = data[".tar"][: -len(_END_OF_ARCHIVE)]
    for suffix, part in data.items():
        storage.write(_parked(shard, suffix), part)
    hashes = {suffix: hashlib.sha256(part).hexdigest() for suffix, part in data.items()}
    storage.write_json(_parked(shard, DONE), _state(plan, hashes, done.get("meshes", {}), done["run"]))
    storage.remove(f"{name}{DONE}")


class ShardWriter:
    """Writes one shard of a dataset; nothing is visible before `commit`, and leaving without it removes everything."""

    def __init__(self, storage: Storage, plan: Plan, shard: int):
        self.storage, self.plan, self.shard, self.name = storage, plan, shard, schema.shard_name(shard)
        self._scratch: dict[str, Path] = {}
        self._tar = self._new_scratch(".tar").open("wb")
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._views: list[dict[str, Any]] = []
        self._identities: list[dict[str, Any]] = []
        self._meshes: dict[str, dict[str, Any]] = {}
        self.run: dict[str, Any] = {}
        """The notes of the writer before on its run, if this one goes on where it stopped."""

    @property
    def identities(self) -> set[int]:
        """The identities that have been added."""
        return {row["identity"] for row in self._identities}

    def park(self, run: Mapping[str, Any]) -> None:
        """Keep what was added, for a writer that goes on from there; nothing of it counts as part of the dataset."""
        with naming(self._scratch[".tar"]):
            self._tar.close()
        tables = {suffix: parquet_bytes(table) for suffix, table in self._tables().items()}
        hashes = {
            ".tar": self._sha256.hexdigest(),
            **{suffix: _record(data)["sha256"] for suffix, data in tables.items()},
        }
        self.storage.commit(self._scratch[".tar"], _parked(self.shard, ".tar"))
        for suffix, data in tables.items():
            self.storage.write(_parked(self.shard, suffix), data)
        self.storage.write_json(_parked(self.shard, DONE), _state(self.plan, hashes, self._meshes, run))

    def resume(self) -> None:
        """Go on from what another writer of this plan has parked, if that is whole; `commit` removes it.

        A shard that runs twice may be parked twice, so files of two writers may be mixed.
        """
        try:
            state = json.loads(self.storage.read(_parked(self.shard, DONE)))
            data = {suffix: self.storage.read(_parked(self.shard, suffix)) for suffix in SUFFIXES}
        except FileNotFoundError:
            return
        hashes = {suffix: hashlib.sha256(part).hexdigest() for suffix, part in data.items()}
        if state["fingerprint"] == self.plan.fingerprint and hashes == state["sha256"]:
            self._write(data[".tar"])
            self._position, self._meshes, self.run = len(data[".tar"]), state["meshes"], state["run"]
            self._views, self._identities = (parquet_file(data[s]).read().to_pylist() for s in SUFFIXES[1:])

    def _discard(self) -> None:
        """Remove what is parked of this shard."""
        for suffix in (DONE, *SUFFIXES):
            if self.storage.exists(_parked(self.shard, suffix)):
                self.storage.remove(_parked(self.shard, suffix))

    def add_view(self, row: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        """Append one sample; `row` holds the camera columns of schema.VIEWS, `members` the encoded files."""
        assert tuple(members) == self.plan.member_names, tuple(members)
        blocks, index = [], {}
        for name, data in members.items():
            header = tar_header(member_name(row["key"], self.plan.members[name]), len(data))
            blocks += [header, data, bytes(padding(len(data)))]
            self._position += len(header)
            index[name] = {"offset": self._position, "size": len(data), "sha256": hashlib.sha256(data).digest()}
            self._position += len(data) + padding(len(data))
        self._write(b"".join(blocks))
        self._views.append({**row, **index})

    def add_identity(self, row: Mapping[str, Any]) -> None:
        """Append the row of one identity, with the columns of schema.IDENTITIES; absent ones are null."""
        self._identities.append(dict(row))

    def add_mesh(self, identity: int, ply: bytes) -> None:
        """Write the mesh of an identity to a separate file, whose hash is kept in the commit record."""
        name = schema.mesh_file(identity)
        self.storage.write(name, ply)
        self._meshes[name] = _record(ply)

    def commit(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Make the shard durable and visible; `run` (host, seconds, versions) goes into done.json, which is returned.

        If another writer has committed it meanwhile, its shard stays.
        """
        if self.storage.exists(f"{FOLDER}/{self.name}{DONE}"):
            self._discard()
            return json.loads(self.storage.read(f"{FOLDER}/{self.name}{DONE}"))
        self._write(_END_OF_ARCHIVE)
        with naming(self._scratch[".tar"]):
            self._tar.close()
        tables = self._tables()
        files = {".tar": {"size": self._position + len(_END_OF_ARCHIVE), "sha256": self._sha256.hexdigest()}}
        for suffix, table in tables.items():
            data, scratch = parquet_bytes(table), self._new_scratch(suffix)
            with naming(scratch):
                scratch.write_bytes(data)
            files[suffix] = _record(data)
        outcomes = [row["outcome"] for row in self._identities]
        done = {
            "fingerprint": self.plan.fingerprint,
            "files": files,
            # Left out where there are none, as in older records.
            **({"meshes": self._meshes} if self._meshes else {}),
            "views": len(self._views),
            "outcomes": {o: outcomes.count(o) for o in (schema.KEPT, schema.FILTERED, schema.FAILED)},
            "run": dict(run),
        }
        for suffix in SUFFIXES:
            self.storage.commit(self._scratch[suffix], f"{FOLDER}/{self.name}{suffix}")
        self.storage.write_json(f"{FOLDER}/{self.name}{DONE}", done)
        self._discard()  # of a second run of this shard that was given back
        return done

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            # Closing flushes the buffer, which fails again on a full disk.
            with naming(self._scratch[".tar"]):
                self._tar.close()
        finally:
            for scratch in self._scratch.values():
                scratch.unlink(missing_ok=True)

    def _tables(self) -> dict[str, pa.Table]:
        """The rows of the views and of the identities, by their suffix."""
        views = pa.Table.from_pylist(self._views, schema.views_schema(self.plan.member_names))
        return {SUFFIXES[1]: views, SUFFIXES[2]: pa.Table.from_pylist(self._identities, schema.IDENTITIES)}

    def _new_scratch(self, suffix: str) -> Path:
        self._scratch[suffix] = self.storage.scratch(f"{FOLDER}/{self.name}{suffix}")
        return self._scratch[suffix]

    def _write(self, data: bytes) -> None:
        self._sha256.update(data)
        with naming(self._scratch[".tar"]):
            self._tar.write(data)


def _parked(shard: int, suffix: str) -> str:
    """The name of a file of a shard that was given back."""
    return f"{PARKED}/{schema.shard_name(shard)}{suffix}"


def _state(plan: Plan, hashes: dict[str, str], meshes: dict[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a shard that was given back."""
    return {"fingerprint": plan.fingerprint, "sha256": hashes, "meshes": meshes, "run": dict(run)}


def _record(data: bytes) -> dict[str, Any]:
    """The size and the hash of a file, for the commit record."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
