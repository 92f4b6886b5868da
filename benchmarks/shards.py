"""Writing shards: spinset's (hashed per member and as a whole, indexed, fsynced, renamed) against webdataset's ShardWriter.

The same samples (256 px JPEG and PNG noise of realistic sizes) go to both in turn on the same file system; the ratio of
each pair is what counts, because the machine's speed drifts. `python benchmarks/shards.py` prints a table and a JSON line.
"""

import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from manifests import schema
from manifests.plan import Plan
from manifests.shards import ShardWriter
from manifests.storage import Storage

IDENTITIES, VIEWS, PAIRS = 16, 125, 7


def main() -> None:
    samples = make_samples()
    megabytes = sum(len(data) for _, members in samples for data in members.values()) / 1e6
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_ours(samples, Path(folder) / "warm-up")
        for pair in range(PAIRS):
            ours.append(write_ours(samples, Path(folder) / f"ours-{pair}"))
            theirs.append(write_theirs(samples, Path(folder) / f"theirs-{pair}"))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    rate = {
        name: len(samples) / statistics.median(times) for name, times in (("spinset", ours), ("webdataset", theirs))
    }
    print(f"{len(samples)} samples, {megabytes:.0f} MB, {PAIRS} pairs")
    print(f"{'writer':<28}{'samples/s':>10}")
    print(f"{'spinset, durable':<28}{rate['spinset']:>10.0f}")
    print(f"{'webdataset.ShardWriter':<28}{rate['webdataset']:>10.0f}")
    ratio = statistics.median(ratios)
    print(f"ratio {ratio:.2f} (pairs {min(ratios):.2f} to {max(ratios):.2f})")
    print(json.dumps({"benchmark": "shards", **rate, "ratio": ratio, "ratios": ratios}))


def make_samples() -> list[tuple[dict, dict[str, bytes]]]:
    """2,000 views; pictures repeat, which changes nothing for a writer."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(16):
        small = Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).resize(
            (256, 256), Image.Resampling.BICUBIC
        )
        encoded = {}
        for name, kind in (("rgb", "JPEG"), ("alpha", "PNG"), ("normal", "PNG")):
            out = io.BytesIO()
            (small.convert("L").point(lambda x: 255 * (x > 127)) if name == "alpha" else small).save(
                out, kind, quality=92
            )
            encoded[name] = out.getvalue()
        pictures.append(encoded)
    samples = []
    for identity in range(IDENTITIES):
        for view in range(VIEWS):
            row = {
                "key": schema.sample_key(identity, view), "identity": identity, "view": view,
                "azimuth": 2.88 * view, "elevation": 0.0, "c2w": [0.5] * 16, "K": [0.5] * 9,
            }  # fmt: skip
            described = json.dumps({**row, "source": "noise"}).encode()
            samples.append((row, {**pictures[(identity + view) % len(pictures)], "json": described}))
    return samples


def write_ours(samples: list[tuple[dict, dict[str, bytes]]], folder: Path) -> float:
    plan = Plan(
        source={"name": "noise"}, rig={"id": "orbit-125"}, identities=IDENTITIES, seed=0, resolution=256,
        identities_per_shard=IDENTITIES, settings={},
        members={"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"},
    )  # fmt: skip
    started = time.perf_counter()
    with ShardWriter(Storage(folder), plan, 0) as writer:
        for row, members in samples:
            writer.add_view(row, members)
        for identity in range(IDENTITIES):
            writer.add_identity({"identity": identity, "seed": identity, "outcome": schema.KEPT, "views": VIEWS})
        writer.commit({})
    return time.perf_counter() - started


def write_theirs(samples: list[tuple[dict, dict[str, bytes]]], folder: Path) -> float:
    folder.mkdir()
    started = time.perf_counter()
    with webdataset.ShardWriter(f"{folder}/heads-%06d.tar", maxcount=10**6, maxsize=10**12, verbose=0) as writer:
        for row, members in samples:
            files = {
                "rgb.jpg": members["rgb"], "alpha.png": members["alpha"],
                "normal.png": members["normal"], "json": members["json"],
            }  # fmt: skip
            writer.write({"__key__": row["key"], **files})
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
