"""Cached latents against decoding pixels: the same 8-of-125-view batches at 512 px by the same loader, in samples/s.

Pixels are measured twice: in memory that workers reuse, and in the shared memory that torch allocates for each batch.

A dataset of textured heads is made first, with random latents of Stable Diffusion's shape (4 channels, 8 px cells) instead of
encoded ones, which are read at the same speed. `python benchmarks/latents.py` prints a table and a JSON line.
"""

import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from manifests import schema
from manifests.dataset import Dataset
from manifests.latents import PARTS, Record, identity_background, write_latents
from manifests.plan import Plan, write_plan
from manifests.scores import tar_sha256
from manifests.shards import ShardWriter
from manifests.storage import Storage
from train.data.config import LoaderConfig
from train.data.loader import open_loader
from train.data.sampling import MultiView
from train.networks.config import CONFIG, WEIGHTS
from train.networks.model import vae_sha256

IDENTITIES, VIEWS, SIDE, BATCH, WORKERS, PAIRS = 4, 125, 512, 4, 2, 5
STEPS = {"pixels, torch's memory": 6, "pixels": 6, "latents": 60}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset, vae = make_dataset(Path(folder) / "heads"), make_vae(Path(folder) / "vae")
        write_random_latents(dataset, vae_sha256(vae))
        rates: dict[str, list[float]] = {name: [] for name in STEPS}
        for _ in range(PAIRS):
            for name, own in rates.items():
                method = "forkserver" if name.endswith("memory") else "fork"
                own.append(samples_per_second(dataset, vae if name == "latents" else "", method, STEPS[name]))
    fresh, pixels, latents = rates.values()
    ratios, reuse = ([b / a for a, b in zip(*pair, strict=True)] for pair in ((pixels, latents), (fresh, pixels)))
    print(
        f"batches of {BATCH} samples, 8 of {VIEWS} views of {SIDE} px, rgb and normal, {WORKERS} workers, {PAIRS} pairs"
    )
    print(f"{'source':<24}{'samples/s':>10}{'views/s':>10}")
    for name, own in rates.items():
        print(f"{name:<24}{statistics.median(own):>10.1f}{8 * statistics.median(own):>10.0f}")
    print(f"latents / pixels {statistics.median(ratios):.1f} (pairs {min(ratios):.1f} to {max(ratios):.1f})")
    print(f"memory used again / torch's {statistics.median(reuse):.2f} (pairs {min(reuse):.2f} to {max(reuse):.2f})")
    medians = {name: statistics.median(own) for name, own in rates.items()}
    print(
        json.dumps(
            {"benchmark": "latents", **medians, "ratio": statistics.median(ratios), "ratios": ratios, "reuse": reuse}
        )
    )


def samples_per_second(dataset: Dataset, vae: str, start_method: str, steps: int) -> float:
    """The rate after the first batches, which the workers have prepared while they started."""
    how = {"batch": BATCH, "workers": WORKERS, "latents": vae, "start_method": start_method}
    config = LoaderConfig(dataset.storage.url, MultiView(), **how)
    batches = iter(open_loader(config))
    for _ in range(WORKERS * config.prefetch + 1):
        next(batches)
    return steps * BATCH / time_of(lambda: [next(batches) for _ in range(steps)])


def time_of(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make_dataset(folder: Path) -> Dataset:
    """Heads of smooth noise before white; a few pictures repeat, which changes nothing for a decoder."""
    members = {"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}
    azimuth = (np.arange(VIEWS) * 360 / VIEWS).tolist()
    plan = Plan({"name": "noise"}, {"id": f"orbit-{VIEWS}", "azimuth": azimuth}, IDENTITIES, 0, SIDE, 2, members, {})
    storage, pictures = Storage(folder), [make_picture(number) for number in range(8)]
    write_plan(storage, plan)
    for shard in range(plan.shards):
        with ShardWriter(storage, plan, shard) as writer:
            for identity in plan.identities_of(shard):
                for view in range(VIEWS):
                    writer.add_view(camera(identity, view, azimuth[view]), pictures[(identity + view) % len(pictures)])
                writer.add_identity({"identity": identity, "outcome": schema.KEPT, "views": VIEWS})
            writer.commit({})
    return Dataset(storage)


def camera(identity: int, view: int, azimuth: float) -> dict:
    matrices = {"c2w": np.eye(4).ravel().tolist(), "K": np.eye(3).ravel().tolist()}
    key = schema.sample_key(identity, view)
    return {"key": key, "identity": identity, "view": view, "azimuth": azimuth, "elevation": 0.0, **matrices}


def make_picture(number: int) -> dict[str, bytes]:
    rng, grid = np.random.default_rng(number), np.linspace(-1, 1, SIDE)
    alpha = np.hypot(grid[:, None] / 0.9, grid / 0.7) < 1
    encoded = {}
    for name, ground, kind in (("rgb", 255, "JPEG"), ("normal", 128, "PNG")):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        texture = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        encoded[name] = encode(np.where(alpha[..., None], texture, ground).astype(np.uint8), kind)
    return {
        "rgb": encoded["rgb"],
        "alpha": encode(255 * alpha.astype(np.uint8), "PNG"),
        "normal": encoded["normal"],
        "json": b"{}",
    }


def encode(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, quality=95)
    return out.getvalue()


def make_vae(folder: Path) -> str:
    """The files by which an autoencoder is known; nothing is encoded with them."""
    folder.mkdir()
    (folder / CONFIG).write_text("{}")
    (folder / WEIGHTS).write_bytes(b"")
    return str(folder)


def write_random_latents(dataset: Dataset, sha256: str) -> None:
    rng = np.random.default_rng(0)
    for shard in dataset.committed():
        identities = dataset.plan.identities_of(shard)
        shape = (VIEWS * len(identities), len(PARTS), 2, 4, SIDE // 8, SIDE // 8)
        colours = {str(i): identity_background(0, i) for i in identities}
        record = Record(dataset.plan.fingerprint, tar_sha256(dataset, shard), sha256, 0.18215, shape, colours)
        with write_latents(dataset, shard, record) as append:
            for _ in range(shape[0]):
                append(rng.random((1, *shape[1:]), np.float32).astype(np.float16))


if __name__ == "__main__":
    main()
