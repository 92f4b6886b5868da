"""Small datasets whose cameras are true: noise seen from an orbit, or procedural heads."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from small import noise_sample, small_plan

from geometry.cameras import Cameras, orbit
from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.shards import ShardWriter
from manifests.storage import Storage


def ring(views: int) -> Cameras:
    return orbit(360.0 / views * np.arange(views), np.zeros(views))


def turned_noise(folder: Path, identities: int = 4, views: int = 5, **plan) -> Dataset:
    """Noise, every identity in a shard of its own."""
    made, cameras = small_plan(identities, 1, **{"rig": {"id": f"orbit-{views}"}, **plan}), ring(views)
    storage = Storage(folder)
    write_plan(storage, made)
    for identity in range(identities):
        with ShardWriter(storage, made, identity) as writer:
            for view in range(views):
                row, members = noise_sample(made, identity, view)
                row |= _camera(cameras, view, 360.0 / views * view)
                writer.add_view(row, members)
            _finish(writer, identity, views, {})
    return Dataset(storage)


def turned_heads(folder: Path, seeds: list[int], views: int = 6, resolution: int = 64) -> Dataset:
    """Procedural heads; their normals are grey."""
    from turntable import in_bytes, turntable

    members = {"rgb": "rgb.png", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}
    source = {"name": "procedural", "version": 1}
    made = small_plan(
        len(seeds),
        1,
        source=source,
        members=members,
        resolution=resolution,
        rig={"id": f"orbit-{views}"},
        seed=seeds[0],
    )
    storage = Storage(folder)
    write_plan(storage, made)
    for identity, seed in enumerate(seeds):
        pictures, masks, cameras = turntable(seed, tuple(360.0 / views * np.arange(views)), resolution)
        with ShardWriter(storage, made, identity) as writer:
            for view, picture in enumerate(in_bytes(pictures)):
                row = {"key": schema.sample_key(identity, view), "identity": identity, "view": view, "elevation": 0.0}
                row |= _camera(cameras, view, 360.0 / views * view)
                alpha = (masks[view].numpy() * 255).astype(np.uint8)
                grey = np.full_like(picture, 128)
                stored = {"rgb": _png(picture), "alpha": _png(alpha), "normal": _png(grey), "json": b"{}"}
                writer.add_view(row, stored)
            _finish(writer, identity, views, {})
    return Dataset(storage)


def _camera(cameras: Cameras, view: int, azimuth: float) -> dict:
    c2w, K = (tensor[view].flatten().tolist() for tensor in (cameras.c2w, cameras.K))
    return {"azimuth": (azimuth + 180) % 360 - 180, "elevation": 0.0, "c2w": c2w, "K": K}


def _finish(writer: ShardWriter, identity: int, views: int, facts: dict) -> None:
    row = {"identity": identity, "seed": identity, "outcome": schema.KEPT, "views": views, "facts": json.dumps(facts)}
    writer.add_identity(row)
    writer.commit({"identity_seconds": {str(identity): 1.0}})


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
