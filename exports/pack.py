"""Packs and copies: the kept views of a dataset as a new dataset, with shards of another size or linked as they are.

Members are copied byte for byte, identities keep their numbers, and the plan of a pack records where they come from. Shards
are committed as in every dataset, so a pack resumes, and equal inputs give equal bytes.
"""

import os
import shutil
import socket
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exports.config import PackConfig
from jobs.progress import JobProgress
from jobs.units import Event
from manifests.dataset import Dataset
from manifests.errors import UserError, damaged
from manifests.index import Subset
from manifests.plan import FILE, Plan, write_plan
from manifests.selection import Selection
from manifests.shards import DONE, SUFFIXES, ShardWriter, stored_size
from manifests.storage import TEMPORARY, Storage
from manifests.subset import kept_identities, open_subset
from manifests.verify import verify_shard

_CAMERA = ("key", "identity", "view", "azimuth", "elevation", "c2w", "K")


def pack(config: PackConfig) -> Dataset:
    """Make the missing shards of a pack, and return it.

    Raises:
        UserError: the dataset is not complete, there is no such selection, or DEST holds other files.
    """
    source = Dataset(config.out)
    subset, selection = open_subset(source, config.selection, config.identities)
    made = open_pack(Storage(config.dest), pack_plan(source, subset, selection, config.shard_mb * 1_000_000))
    write_pack(source, subset, made)
    return made


def pack_plan(source: Dataset, subset: Subset, selection: Selection | None, shard_bytes: int) -> Plan:
    """The plan of a pack: its lineage, and the identities of each shard, which holds up to `shard_bytes` or one identity."""
    of_views = sum(stored_size(size[subset.rows].astype(np.int64)) for size in subset.index.size.values())
    sizes = np.add.reduceat(of_views, subset.starts[:-1])
    shards: list[list[int]] = []
    free = 0
    for identity, size in zip(subset.identities.tolist(), sizes.tolist(), strict=True):
        if not shards or size > free:
            shards.append([])
            free = shard_bytes
        shards[-1].append(identity)
        free -= size
    packed = {
        "source": source.plan.fingerprint,
        "before": {k: v for k, v in (source.plan.packed or {}).items() if k != "shards"} or None,
        "selection": _lineage(source, selection),
        "shard_bytes": shard_bytes,
        "shards": shards,
    }
    return replace(
        source.plan,
        identities=sum(map(len, shards)),
        identities_per_shard=max(map(len, shards)),
        packed=packed,
    )


def open_pack(storage: Storage, plan: Plan) -> Dataset:
    """The pack at its destination, to be written or resumed.

    Raises:
        UserError: there are other files; nothing was written.
    """
    if not storage.exists(FILE) and any(TEMPORARY not in name for name in storage.names()):
        raise UserError(f"{storage.url} holds other files; choose an empty folder, or that of the same pack")
    write_plan(storage, plan)
    storage.clear_leftovers()
    return Dataset(storage)


def write_pack(source: Dataset, subset: Subset, made: Dataset) -> None:
    """Commit the shards that a pack lacks, and show the progress."""
    already = sum(len(made.plan.identities_of(shard)) for shard in made.committed())
    with JobProgress("pack", made.plan.identities, already) as progress:
        for shard in made.pending():
            _write_shard(source, subset, made, shard, progress)


def _write_shard(source: Dataset, subset: Subset, made: Dataset, shard: int, progress: JobProgress) -> None:
    names = made.plan.member_names
    with ShardWriter(made.storage, made.plan, shard) as writer:
        for identity in kept_identities(source, subset, made.plan.identities_of(shard)):
            members = zip(*identity.members(*names), strict=True)
            for row, data in zip(identity.views.select(_CAMERA).to_pylist(), members, strict=True):
                writer.add_view(row, dict(zip(names, data, strict=True)))
            writer.add_identity({**identity.row, "views": len(identity.views)})
            if (mesh := identity.mesh()) is not None:
                writer.add_mesh(identity.number, mesh)
            progress.update(Event(shard, identity.number, "copy", 1, 1))
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        writer.commit({"host": socket.gethostname(), "finished": finished, "identity_seconds": {}})


def copy_shards(source: Dataset, subset: Subset, selection: Selection | None, root: Path) -> Dataset:
    """Copy a dataset to a local folder: its shards are linked if all of it is kept, and packed otherwise."""
    storage = Storage(str(root))
    storage.clear_leftovers()
    everything = selection is None and len(subset.rows) == len(subset.index)
    plan = source.plan if everything else pack_plan(source, subset, selection, PackConfig.shard_mb * 1_000_000)
    write_plan(storage, plan)
    copy = Dataset(storage)
    if not everything:
        write_pack(source, subset, copy)
        return copy
    for shard in copy.pending():
        if fault := next(verify_shard(source, shard, deep=False), None):
            raise damaged(fault.file, f"is damaged ({fault})", source.storage.url)
        files = [*source.done(shard).get("meshes", {}), *(copy.file(shard, suffix) for suffix in (*SUFFIXES, DONE))]
        for file in files:
            _link(source, file, storage)
    return copy


def _lineage(source: Dataset, selection: Selection | None) -> dict[str, Any] | None:
    """The record of a selection in a plan: its name, its hash, its policy if it has one, and how much it dropped by reason."""
    if selection is None:
        return None
    view, keep = (selection.rows.column(name).to_numpy() for name in ("view", "keep"))
    counts = {}
    for level, rows in (("views", view >= 0), ("identities", view < 0)):
        dropped = Counter(selection.rows.filter(rows & ~keep).column("reason").combine_chunks().to_pylist())
        judged, kept = int(rows.sum()), int((rows & keep).sum())
        counts[level] = {"judged": judged, "kept": kept, "dropped": {r: dropped[r] for r in sorted(dropped, key=str)}}
    return {
        "name": selection.name,
        "sha256": selection.fingerprint,
        "policy": selection.policy,
        **counts,
    }


def _link(source: Dataset, name: str, storage: Storage) -> None:
    """Put a file into another folder atomically, as a hard link where possible and else as a copy."""
    # Renaming a link onto another one of the same file leaves both; the scratch file is removed even so.
    with storage.writing(name) as scratch:
        try:
            if not source.storage.is_local:
                raise OSError("only local files can be linked")
            os.link(source.storage.path(name), scratch)
        except OSError:
            with source.storage.open(name) as file, scratch.open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 24)
