"""A dataset as the base of an export: its shards linked or copied as they are, or packed where only a part is wanted."""

import os
import shutil
from pathlib import Path

from exports.config import PackConfig
from exports.pack import fill
from manifests.dataset import Dataset
from manifests.errors import damaged
from manifests.keep import Keep
from manifests.pack import make_pack_plan
from manifests.plan import write_plan
from manifests.shards import DONE, SUFFIXES
from manifests.storage import Storage
from manifests.verify import verify_shard


def copy_shards(source: Dataset, keep: Keep, root: Path) -> Dataset:
    """The dataset that an export adds its files to."""
    storage = Storage(str(root))
    storage.clear_leftovers()
    views = sum(source.done(shard)["views"] for shard in source.committed())
    everything = keep.selection is None and keep.counts.sum() == views
    plan = source.plan if everything else make_pack_plan(source, keep, PackConfig.shard_mb * 1_000_000)
    write_plan(storage, plan)
    copy = Dataset(storage)
    if not everything:
        fill(source, keep, copy)
        return copy
    for shard in copy.pending():
        if fault := next(verify_shard(source, shard, deep=False), None):
            raise damaged(fault.file, f"is damaged ({fault})", source.storage.url)
        files = [*source.done(shard).get("meshes", {}), *(copy.file(shard, suffix) for suffix in (*SUFFIXES, DONE))]
        for file in files:
            _link(source, file, storage)
    return copy


def _link(source: Dataset, name: str, storage: Storage) -> None:
    """The same file under another folder: a hard link where that can be, else a copy; whole or not there."""
    scratch = storage.scratch(name)
    try:
        if not source.storage.is_local:
            raise OSError("only local files can be linked")
        os.link(source.storage.path(name), scratch)
    except OSError:
        with source.storage.open(name) as file, scratch.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 24)
    storage.commit(scratch, name)
    # Renaming a link onto another one of the same file leaves both.
    scratch.unlink(missing_ok=True)
