"""megatron-energon: the .nv-meta folder and the tar indices of a CrudeWebdataset, as `energon prepare` makes them.

Source: Megatron-Energon 7, "Dataset Format on Disk" and its WebdatasetPreparator. The index of the dataset has all
offsets, so no tar is read.
"""

import json
import sqlite3
import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

from manifests import schema
from manifests.dataset import Dataset
from manifests.shards import padding

META = ".nv-meta"
PREPARED_BY = "7.4.1"
"""The version of energon that makes the same files."""

DATASET_YAML = b"__module__: megatron.energon\n__class__: CrudeWebdataset\n"

TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER,
    content_byte_size INTEGER);
"""
INDICES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def energon(copy: Dataset) -> Iterator[tuple[str, bytes]]:
    """The files that energon needs in addition to the shards, all of which are its train split."""
    root = Path(copy.storage.root)
    sqlite = root / META / "index.sqlite"
    sqlite.parent.mkdir(exist_ok=True)
    sqlite.unlink(missing_ok=True)
    counts: dict[str, int] = {}
    with closing(sqlite3.connect(sqlite)) as index:
        index.executescript(TABLES)
        for shard in range(copy.plan.shards):
            rows = copy.views(shard).to_pylist()
            if not rows:  # every identity failed: energon refuses empty shards
                continue
            tar, starts = copy.file(shard, ".tar"), _starts(rows, copy.plan.member_names)
            _add(index, len(counts), rows, starts, copy.plan.members)
            counts[tar] = len(rows)
            yield f"{tar}.idx", struct.pack(f"{len(starts)}Q", *starts)
        index.executescript(INDICES)
    yield f"{META}/index.uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, copy.plan.fingerprint)).encode()
    yield f"{META}/.info.json", json.dumps({"energon_version": PREPARED_BY, "shard_counts": counts}, indent=2).encode()
    # JSON is YAML too.
    splits = {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    yield f"{META}/split.yaml", (json.dumps(splits, indent=2) + "\n").encode()
    yield f"{META}/dataset.yaml", DATASET_YAML


def _starts(rows: list[dict[str, Any]], members: Sequence[str]) -> list[int]:
    """Where each sample's first header begins, and where the last sample ends."""
    last = rows[-1][members[-1]]
    end = last["offset"] + last["size"] + padding(last["size"])
    return [row[members[0]]["offset"] - BLOCKSIZE for row in rows] + [end]


def _add(
    index: sqlite3.Connection, tar: int, rows: list[dict[str, Any]], starts: list[int], parts: dict[str, str]
) -> None:
    samples = (
        (tar, row["key"], number, first, following - first)
        for number, (row, first, following) in enumerate(zip(rows, starts[:-1], starts[1:], strict=True))
    )
    index.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
    index.executemany(
        "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
        (
            (tar, number, parts[name], row[name]["offset"], row[name]["size"])
            for number, row in enumerate(rows)
            for name in schema.member_names(parts)
        ),
    )
    index.commit()
