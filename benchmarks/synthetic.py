"""Datasets of any size without pictures: real records, tables and scores of random numbers, and tars that are holes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests import schema
from manifests import scores as tables
from manifests.dataset import Dataset
from manifests.plan import Plan, write_plan
from manifests.scores import IDENTITY, VIEW, WHOLE, Lineage, column
from manifests.shards import stored_size
from manifests.storage import Storage
from manifests.tables import parquet_bytes

VIEWS = 125

POLICY = {
    "name": "benchmark",
    "rules": [
        {
            "name": "janus",
            "score": {"softmax": ["clip_janus.front", "clip_janus.back"]},
            "max": 0.93,
            "where": {"azimuth": [120, 240]},
            "drop": "view",
        },
        {"name": "fog", "score": "image.fog", "max": 0.99, "drop": "identity", "max_failing_share": 0.05},
        {"name": "floaters", "score": "mesh.detached", "max": 0.999, "drop": "identity", "max_failing": 1},
        {"name": "duplicates", "score": "duplicates.earlier_cosine", "max": 0.98},
        {"name": "consistency", "score": "arcface.mean_cosine", "keep_top": 0.7},
    ],
}

COLUMNS = {
    "clip_janus": [("front", VIEW), ("back", VIEW)],
    "arcface": [("mean_cosine", IDENTITY)],
    "mesh": [("detached", VIEW)],
    "image": [("fog", VIEW)],
    "duplicates": [("earlier_cosine", IDENTITY)],
}

MEMBERS = {"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}
SIZES = {"rgb": 60_000, "alpha": 9_000, "normal": 120_000, "json": 900}
"""Mean bytes of a member at 512 px."""


def write_shards(folder: Path, identities: int, per_shard: int) -> Dataset:
    """Commit all shards of a dataset whose pictures are holes of their tars."""
    azimuth = [14.4 * (view % 25) for view in range(VIEWS)]
    plan = Plan({}, {"id": "spinmeround-125", "azimuth": azimuth}, identities, 0, 512, per_shard, MEMBERS, {})
    storage = Storage(folder)
    write_plan(storage, plan)
    shards = folder / schema.SHARDS
    shards.mkdir(exist_ok=True)
    for shard in range(plan.shards):
        own = np.array(plan.identities_of(shard))
        views, size = _views(own, np.random.default_rng(shard))
        files = {".views.parquet": parquet_bytes(views), ".identities.parquet": parquet_bytes(_identities(own))}
        path = shards / schema.shard_name(shard)
        for suffix, data in files.items():
            Path(f"{path}{suffix}").write_bytes(data)
        with open(f"{path}.tar", "wb") as tar:
            tar.truncate(size)
        hashes = {s: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for s, data in files.items()}
        done = {
            "fingerprint": plan.fingerprint,
            "files": {".tar": {"size": size, "sha256": f"{shard:064x}"}, **hashes},
            "views": len(views),
            "outcomes": {schema.KEPT: len(own), schema.FILTERED: 0, schema.FAILED: 0},
            "run": {"host": "none", "identity_seconds": {str(identity): 40.0 for identity in own}},
        }
        Path(f"{path}{schema.DONE}").write_text(json.dumps(done, indent=2))
    return Dataset(storage)


def _views(own: np.ndarray, draw: np.random.Generator) -> tuple[pa.Table, int]:
    """The views table of some identities, and the size of its tar."""
    identity, view = np.repeat(own, VIEWS), np.tile(np.arange(VIEWS, dtype=np.int16), len(own))
    rows = len(view)
    parts = (pc.utf8_lpad(pc.cast(pa.array(n), pa.string()), w, "0") for n, w in ((identity, 7), (view, 3)))
    sizes = np.stack([draw.integers(mean // 2, mean * 2, rows) for mean in SIZES.values()], 1)
    ends = np.cumsum(stored_size(sizes)).reshape(sizes.shape)
    offsets = ends - stored_size(sizes) + 512
    hashes = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32), 4 * rows, pa.array(draw.integers(0, 256, 128 * rows, np.uint8)).buffers()
    )
    members = [
        pa.StructArray.from_arrays(
            [pa.array(offsets[:, k]), pa.array(sizes[:, k]), hashes.slice(k * rows, rows)],
            fields=list(schema.VIEWS.field(name).type),
        )
        for k, name in enumerate(SIZES)
    ]
    cameras = (draw.random((rows, n), np.float32).ravel() for n in (16, 9))
    columns = [
        pc.binary_join_element_wise(*parts, "_v"),
        identity,
        view,
        *_directions(view, draw),
        *(pa.FixedSizeListArray.from_arrays(values, n) for values, n in zip(cameras, (16, 9), strict=True)),
        *members,
    ]
    return pa.table(columns, schema=schema.VIEWS), int(ends[-1, -1]) + 1024


def _identities(own: np.ndarray) -> pa.Table:
    known = {"identity": own, "seed": own, "outcome": [schema.KEPT] * len(own), "views": np.full(len(own), VIEWS)}
    nothing = {field.name: pa.nulls(len(own), field.type) for field in schema.IDENTITIES}
    return pa.table({**nothing, **known}, schema=schema.IDENTITIES)


def write_scores(dataset: Dataset) -> None:
    """Commit five score tables of random numbers."""
    draw, identities = np.random.default_rng(0), dataset.plan.identities
    identity = np.repeat(np.arange(identities), VIEWS + 1)
    view = np.tile(np.arange(-1, VIEWS, dtype=np.int16), identities)
    base = [identity, view, *_directions(view, draw)]
    for table, columns in COLUMNS.items():
        values = [
            pa.array(draw.random(len(view), np.float32) * (0.1 if table == "clip_janus" else 1),
                     mask=(view == WHOLE) == (level == VIEW))
            for _, level in columns
        ]  # fmt: skip
        fields = tables.table_schema([column(name, level, "noise") for name, level in columns])
        tables.write_whole(dataset, table, pa.table([*base, *values], schema=fields), Lineage(table, 1, None))


def _directions(view: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    azimuth = ((view % 25) * 14.4 + draw.uniform(-7, 7, len(view)) + 180) % 360 - 180
    elevation = (view // 25) * 11.5 - 23 + draw.uniform(-5, 5, len(view))
    return azimuth.astype(np.float32), elevation.astype(np.float32)
