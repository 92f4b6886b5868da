"""Small datasets of noise pictures: what readers and writers of shards are tested on."""

import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import Plan
from manifests.scores import WHOLE
from manifests.selection import ROWS, write_selection
from manifests.shards import ShardWriter
from manifests.storage import Storage


def small_plan(identities: int = 5, per_shard: int = 2, **changes) -> Plan:
    """A plan of tiny pictures that no source has to draw."""
    fields = {
        "source": {"name": "noise", "version": 1},
        "rig": {"id": "orbit-3"},
        "identities": identities,
        "seed": 0,
        "resolution": 16,
        "identities_per_shard": per_shard,
        "members": {"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"},
        "settings": {},
    }
    return Plan(**{**fields, **changes})


def write_shard(
    storage: Storage, plan: Plan, shard: int, views: int = 3, defects: dict[int, Any] | None = None
) -> dict:
    """Commit a shard of noise pictures, the same every time."""
    with ShardWriter(storage, plan, shard) as writer:
        for identity in plan.identities_of(shard):
            for view in range(views):
                writer.add_view(*noise_sample(plan, identity, view))
            row = {"identity": identity, "seed": identity, "outcome": schema.KEPT, "views": views, "facts": "{}"}
            writer.add_identity({**row, "defects": (defects or {}).get(identity)})
        return writer.commit({"identity_seconds": {str(i): 1.0 for i in plan.identities_of(shard)}})


def choose(
    dataset: Dataset, name: str, dropped: set[tuple[int, int]] | dict[tuple[int, int], str], views: int = 3
) -> None:
    """Write a selection without some (identity, view), with their reasons if given; view WHOLE drops all of an identity."""
    reasons = dropped if isinstance(dropped, dict) else {}
    rows = [(i, v) for i in range(dataset.plan.identities) for v in range(WHOLE, views)]
    keep = [(i, v) not in dropped and (i, WHOLE) not in dropped for i, v in rows]
    columns = [[i for i, _ in rows], [v for _, v in rows], keep, [reasons.get(r) for r in rows], [None] * len(rows)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)]
    write_selection(dataset, name, pa.table(arrays, schema=ROWS))


def members_of(dataset: Dataset, shard: int, name: str) -> list[bytes]:
    """One member of every view of a shard, as Python's tarfile finds it under its name."""
    with tarfile.open(dataset.storage.path(dataset.file(shard, ".tar"))) as tar:
        keys = dataset.views(shard).column("key").to_pylist()
        return [tar.extractfile(f"{key}.{dataset.plan.members[name]}").read() for key in keys]


def hide_normals(monkeypatch) -> None:
    """Let every dataset be one without normals, whatever its shards hold."""
    original = Dataset.views

    def without_normals(self, shard, columns=None):
        table = original(self, shard, columns)
        at = columns.index("normal.size")
        return table.set_column(at, table.field(at), pa.nulls(len(table), pa.int64()))

    monkeypatch.setattr(Dataset, "views", without_normals)


def noise_sample(plan: Plan, identity: int, view: int) -> tuple[dict, dict[str, bytes]]:
    pixels = np.random.default_rng([identity, view]).integers(0, 256, (plan.resolution, plan.resolution, 3), np.uint8)
    row = {
        "key": schema.sample_key(identity, view),
        "identity": identity,
        "view": view,
        "azimuth": 120.0 * view,
        "elevation": 0.0,
        "c2w": np.eye(4).flatten().tolist(),
        "K": np.eye(3).flatten().tolist(),
    }
    members = {
        "rgb": _image(pixels, "JPEG"),
        "alpha": _image(pixels[..., 0], "PNG"),
        "normal": _image(pixels, "PNG"),
        "json": json.dumps({"identity": identity, "view": view}).encode(),
    }
    for name in plan.member_names[len(members) :]:
        members[name] = noise_array(identity, view) if plan.members[name].endswith("npy") else _image(pixels, "PNG")
    return row, members


def noise_array(identity: int, view: int) -> bytes:
    """Five landmarks as a NumPy file, the same every time."""
    out = io.BytesIO()
    np.save(out, np.random.default_rng([identity, view, 1]).normal(size=(5, 2)).astype(np.float16))
    return out.getvalue()


def _image(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()
