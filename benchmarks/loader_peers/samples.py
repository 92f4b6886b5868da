"""Datasets to load: textured pictures of realistic sizes, always the same."""

import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import Plan, write_plan
from manifests.selection import ROWS, write_selection
from manifests.shards import SUFFIXES, ShardWriter
from manifests.storage import Storage

PICTURES = 16
"""How many are different; loaders cannot tell."""
HALF = "even"
"""The selection that keeps the views of even number."""
MEMBERS = {"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}


def plan_of(identities: int, views: int, resolution: int, per_shard: int) -> Plan:
    rig = {"id": f"orbit-{views}", "azimuth": [360 * v / views for v in range(views)], "elevation": [0.0] * views}
    return Plan({"name": "texture"}, rig, identities, 0, resolution, per_shard, MEMBERS, {})


def write_samples(folder: Path, identities: int, views: int, resolution: int, per_shard: int) -> Dataset:
    """A dataset, and a selection of half of its views."""
    plan, storage = plan_of(identities, views, resolution, per_shard), Storage(folder)
    write_plan(storage, plan)
    for shard in range(plan.shards):
        with ShardWriter(storage, plan, shard) as writer:
            for identity in plan.identities_of(shard):
                for view in range(views):
                    writer.add_view(*_sample(plan, identity, view))
                row = {"identity": identity, "seed": identity, "outcome": schema.KEPT, "views": views, "facts": "{}"}
                writer.add_identity(row)
            writer.commit({})
    dataset = Dataset(storage)
    _select_half(dataset, views)
    return dataset


def _sample(plan: Plan, identity: int, view: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    row = {
        "key": schema.sample_key(identity, view),
        "identity": identity,
        "view": view,
        "azimuth": plan.rig["azimuth"][view],
        "elevation": 0.0,
        "c2w": np.eye(4).flatten().tolist(),
        "K": [1.2, 0, 0.5, 0, 1.2, 0.5, 0, 0, 1],
    }
    described = json.dumps({**row, "source": "texture"}).encode()
    return row, {**_pictures((identity + view) % PICTURES, plan.resolution), "json": described}


@cache
def _pictures(number: int, size: int) -> dict[str, bytes]:
    """Coarse shapes under fine grain: about 20 kB at 256 px as a JPEG of quality 92."""
    rng = np.random.default_rng([number, size])
    shapes = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    coarse, grain = np.asarray(shapes), rng.normal(0, 3.5, (size, size, 1))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = x * x + y * y < 0.6
    return {
        "rgb": _encoded((coarse + grain).clip(0, 255).astype(np.uint8), "JPEG", quality=92),
        "alpha": _encoded(255 * inside.astype(np.uint8), "PNG"),
        "normal": _encoded(np.where(inside[..., None], coarse // 4 * 4, 127).astype(np.uint8), "PNG"),
    }


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def _select_half(dataset: Dataset, views: int) -> None:
    identity = np.repeat(np.arange(dataset.plan.identities), views + 1)
    view = np.tile(np.arange(-1, views), dataset.plan.identities)
    nothing = [pa.nulls(len(view), field.type) for field in (ROWS.field("reason"), ROWS.field("value"))]
    keep = pa.array((view == -1) | (view % 2 == 0))
    rows = pa.table([pa.array(identity), pa.array(view, pa.int16()), keep, *nothing], schema=ROWS)
    write_selection(dataset, HALF, rows)


def write_large(folder: Path, identities: int, views: int) -> None:
    """A dataset as large as wanted in its tables: every view of a shard is the same stored sample, so the tars are small."""
    small = write_samples(folder / "one", 1, 1, 256, 1)
    (stored,) = small.views(0).to_pylist()
    tar = Path(small.storage.path(small.file(0, ".tar"))).read_bytes()
    plan, root = plan_of(identities, views, 256, 16), folder / "large"
    write_plan(Storage(root), plan)
    for shard, files in _large_shards(plan, views, stored, tar):
        for suffix, data in files.items():
            path = root / schema.SHARDS / f"{schema.shard_name(shard)}{suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)


def _large_shards(plan: Plan, views: int, stored: dict[str, Any], tar: bytes) -> Iterator[tuple[int, dict[str, bytes]]]:
    columns = {name: [stored[name]] * views * plan.identities_per_shard for name in ("c2w", "K", *schema.MEMBERS)}
    table = pa.table({name: pa.array(v, schema.VIEWS.field(name).type) for name, v in columns.items()})
    for shard in range(plan.shards):
        own = list(plan.identities_of(shard))
        identity, view = np.repeat(own, views), np.tile(np.arange(views), len(own))
        numbers = {
            "key": [schema.sample_key(i, v) for i, v in zip(identity.tolist(), view.tolist(), strict=True)],
            "identity": identity,
            "view": view.astype(np.int16),
            "azimuth": np.array(plan.rig["azimuth"], np.float32)[view],
            "elevation": np.zeros(len(view), np.float32),
        }
        rest = table.slice(0, len(view))
        whole = pa.table([*map(pa.array, numbers.values()), *rest.columns], schema=schema.VIEWS)
        sink = io.BytesIO()
        pq.write_table(whole, sink, compression="zstd")
        done = {
            "fingerprint": plan.fingerprint,
            "files": {suffix: {"size": 0, "sha256": f"{shard:064x}"} for suffix in SUFFIXES},
            "views": len(view),
            "outcomes": {schema.KEPT: len(own)},
            "run": {},
        }
        yield shard, {".tar": tar, ".views.parquet": sink.getvalue(), schema.DONE: json.dumps(done).encode()}
