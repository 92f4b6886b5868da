"""Packs: a clean copy of what is kept of a dataset, as a dataset of its own with shards of another size.

Members are copied byte for byte, identities keep their numbers, and the plan says where they come from. Shards are
committed as everywhere, so a pack resumes, and equal inputs give equal bytes.
"""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.keep import Keep, kept_identities
from manifests.plan import FILE, Plan, write_plan
from manifests.selection import Selection, selection_file
from manifests.shards import ShardWriter
from manifests.storage import TEMPORARY, Storage

_CAMERA = ("key", "identity", "view", "azimuth", "elevation", "c2w", "K")


def make_pack_plan(source: Dataset, keep: Keep, shard_bytes: int) -> Plan:
    """The plan of a pack: its lineage, and which identities fill which shard up to `shard_bytes` (one always fits)."""
    shards: list[list[int]] = []
    room = 0
    for identity, size in _sizes(source, keep).items():
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(identity)
        room -= size
    packed = {
        "source": source.plan.fingerprint,
        "before": {k: v for k, v in (source.plan.packed or {}).items() if k != "shards"} or None,
        "selection": _lineage(source, keep.selection),
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
        ValueError: something else is there; nothing was touched.
    """
    if not storage.exists(FILE) and storage.fs.isdir(storage.root):
        there = [path.rstrip("/").rsplit("/", 1)[-1] for path in storage.fs.ls(storage.root, detail=False)]
        if any(TEMPORARY not in name for name in there):
            raise UserError(f"{storage.url} holds other files; choose an empty folder, or that of the same pack")
    write_plan(storage, plan)
    storage.clear_leftovers()
    return Dataset(storage)


def write_pack(source: Dataset, keep: Keep, pack: Dataset) -> Iterator[tuple[int, int]]:
    """Commit the shards that a pack lacks; yields (shard, identity) after each identity."""
    names = pack.plan.member_names
    for shard in pack.pending():
        with ShardWriter(pack.storage, pack.plan, shard) as writer:
            for identity in kept_identities(source, keep, pack.plan.identities_of(shard)):
                members = zip(*identity.members(*names), strict=True)
                for row, data in zip(identity.views.select(_CAMERA).to_pylist(), members, strict=True):
                    writer.add_view(row, dict(zip(names, data, strict=True)))
                writer.add_identity({**identity.row, "views": len(identity.views)})
                if (mesh := identity.mesh()) is not None:
                    writer.add_mesh(identity.number, mesh)
                yield shard, identity.number
            finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            writer.commit({"host": socket.gethostname(), "finished": finished, "identity_seconds": {}})


def _sizes(source: Dataset, keep: Keep) -> dict[int, int]:
    """The bytes that each wanted identity takes in a tar, in ascending order."""
    sizes = dict.fromkeys(keep.identities.tolist(), 0)
    for shard in range(source.plan.shards):
        views = source.views(shard, ["identity", "view", *(f"{name}.size" for name in source.plan.member_names)])
        views = views.filter(keep.mask(views))
        members = np.stack([column.to_numpy() for column in views.columns[2:]])
        # One block of header, and the data in whole blocks.
        taken = BLOCKSIZE * (1 - -members // BLOCKSIZE).sum(0)
        for identity, size in zip(views.column("identity").to_pylist(), taken.tolist(), strict=True):
            sizes[identity] += size
    if lost := [identity for identity, size in sizes.items() if not size]:
        raise UserError(f"identity {lost[0]} has no view in {source.storage.url}; make the selection anew")
    return sizes


def _lineage(source: Dataset, selection: Selection | None) -> dict[str, Any] | None:
    """What a selection is and what it dropped, with its policy where that lies beside it."""
    if selection is None:
        return None
    policy = selection_file(selection.name, "policy.json")
    view, keep = (selection.rows.column(name).to_numpy() for name in ("view", "keep"))
    counts = {}
    for level, rows in (("views", view >= 0), ("identities", view < 0)):
        dropped = Counter(selection.rows.filter(rows & ~keep).column("reason").combine_chunks().to_pylist())
        judged, kept = int(rows.sum()), int((rows & keep).sum())
        counts[level] = {"judged": judged, "kept": kept, "dropped": {r: dropped[r] for r in sorted(dropped, key=str)}}
    return {
        "name": selection.name,
        "sha256": selection.fingerprint,
        "policy": json.loads(source.storage.read(policy)) if source.storage.exists(policy) else None,
        **counts,
    }
