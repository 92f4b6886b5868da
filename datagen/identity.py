"""Makes one identity, from its seed to the encoded samples of all its views."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, UInt8

from datagen.config import ImageConfig, MeshConfig
from datagen.heads import Head, HeadSource, Judge
from datagen.meshing import MeshFigures, extract
from datagen.rigs import Rig
from geometry.cameras import Cameras, orbit
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh, encode_normals
from manifests import schema
from manifests.pictures import encode_picture

VIEWS_PER_BATCH = 5


@dataclass(frozen=True)
class IdentitySettings:
    """The settings that all identities of a dataset are made with."""

    rig: Rig
    seed: int
    resolution: int
    image: ImageConfig
    mesh: MeshConfig
    tag: dict[str, str]
    """The fields of every sample's JSON that name the source and the plan."""


@dataclass(frozen=True, eq=False)
class Made:
    """A finished identity: the facts of its row, its samples in order (row of the views table, members), and its mesh."""

    facts: dict[str, Any]
    figures: MeshFigures
    samples: list[tuple[dict[str, Any], dict[str, bytes]]]
    mesh: Mesh


@dataclass(frozen=True, eq=False)
class Rejected:
    """An identity that the judge rejected, and the reason."""

    facts: dict[str, Any]
    reason: str


def make_identity(
    source: HeadSource,
    settings: IdentitySettings,
    identity: int,
    executor: ThreadPoolExecutor,
    judge: Judge | None = None,
) -> Iterator[tuple[str, int] | Made | Rejected]:
    """Make one identity; yields (stage, views done) as it goes, and last what it made, or that the judge rejects it.

    Views are rendered here; meshing, normals and encoding run in `executor` at the same time. Its threads take tasks in
    order, so the mesh, which all encoding waits for, never waits behind a view.
    """
    views = len(settings.rig)
    yield "head", 0
    head = source.head(settings.seed + identity)
    if judge is not None:
        yield "preview", 0
        if reason := _rejection(head, settings, identity, judge):
            return (yield Rejected(head.facts(), reason))
    rows, cameras = _views(settings, identity)
    meshing = executor.submit(_mesh, head, settings.mesh)
    encoding: list[Future[dict[str, bytes]]] = []
    try:
        for first in range(0, views, VIEWS_PER_BATCH):
            yield "views", first
            batch = slice(first, first + VIEWS_PER_BATCH)
            for row, rgb, alpha in zip(rows[batch], *_render(head, cameras[batch], settings.resolution), strict=True):
                camera = cameras[row["view"] : row["view"] + 1]
                encoding.append(executor.submit(_encode, settings, row, camera, rgb, alpha, meshing))
        yield "mesh", views
        mesh, figures, _ = meshing.result()
        yield "encode", views
        samples = [(row, members.result()) for row, members in zip(rows, encoding, strict=True)]
    finally:
        for waiting in (*encoding, meshing):
            waiting.cancel()
    yield Made(head.facts(), figures, samples, mesh)


def fact_columns(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a head as columns of its row in the identities table."""
    others = {name: value for name, value in facts.items() if name != "latent_sha256"}
    return {
        "latent_sha256": facts["latent_sha256"],
        "defects": facts.get("defects"),
        "facts": json.dumps(others, sort_keys=True),
    }


def _rejection(head: Head, settings: IdentitySettings, identity: int, judge: Judge) -> str | None:
    """Why the judge rejects a head, from small views of it; None if it does not."""
    rig = Rig("preview", judge.azimuth, judge.elevation)
    rows, cameras = _views(replace(settings, rig=rig), identity)
    rgb, alpha = _render(head, cameras, judge.resolution)
    row = {"identity": identity, "mesh": None, **fact_columns(head.facts())}
    views = pa.Table.from_pylist(rows, pa.schema([schema.VIEWS.field(name) for name in rows[0]]))
    return judge(row, views, {"rgb": list(rgb), "alpha": list(alpha)})


def _views(settings: IdentitySettings, identity: int) -> tuple[list[dict[str, Any]], Cameras]:
    """The index row and the camera of every view of an identity."""
    azimuth, elevation = settings.rig.directions(settings.seed, identity)
    cameras = rig_cameras(settings.rig, settings.seed, identity)
    rows = [
        {
            "key": schema.sample_key(identity, view),
            "identity": identity,
            "view": view,
            "azimuth": float(azimuth[view]),
            "elevation": float(elevation[view]),
            "c2w": cameras.c2w[view].flatten().tolist(),
            "K": cameras.K[view].flatten().tolist(),
        }
        for view in range(len(settings.rig))
    ]
    return rows, cameras


def _render(
    head: Head, cameras: Cameras, resolution: int
) -> tuple[UInt8[np.ndarray, "v h w 3"], UInt8[np.ndarray, "v h w"]]:
    """Colour and alpha as bytes, because every view waits in memory for the mesh."""
    views = head.render(cameras, resolution)
    rgb, alpha = ((x.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy() for x in (views.rgb, views.alpha))
    return rgb, alpha


def _mesh(head: Head, config: MeshConfig) -> tuple[Mesh, MeshFigures, EmbreeCaster]:
    mesh, figures = extract(head, config)
    return mesh, figures, EmbreeCaster(mesh)


def _encode(
    settings: IdentitySettings,
    row: dict[str, Any],
    camera: Cameras,
    rgb: UInt8[np.ndarray, "h w 3"],
    alpha: UInt8[np.ndarray, "h w"],
    meshing: "Future[tuple[Mesh, MeshFigures, EmbreeCaster]]",
) -> dict[str, bytes]:
    normal = next(meshing.result()[2].cast(camera, settings.resolution)).smooth_normals()
    view = {
        "identity": row["identity"],
        "view": row["view"],
        "seed": settings.seed + row["identity"],
        **settings.tag,
        "azimuth": round(row["azimuth"], 4),
        "elevation": round(row["elevation"], 4),
        "c2w": [round(x, 7) for x in row["c2w"]],
        "K": [round(x, 7) for x in row["K"]],
    }
    return encode_view(rgb, alpha, normal, view, settings.image)


def encode_rgb(rgb: UInt8[np.ndarray, "h w 3"], config: ImageConfig) -> bytes:
    """A colour image in the format of the config."""
    if config.format == "jpg":
        return encode_picture(rgb, "JPEG", quality=config.quality, subsampling=0)
    if config.format == "webp":
        return encode_picture(rgb, "WEBP", lossless=True)
    return encode_picture(rgb, compress_level=6)


def encode_view(
    rgb: UInt8[np.ndarray, "h w 3"],
    alpha: UInt8[np.ndarray, "h w"],
    normal: Float32[np.ndarray, "h w 3"],
    view: dict[str, Any],
    config: ImageConfig,
) -> dict[str, bytes]:
    """The members of one sample, in their order in the shard."""
    return {
        "rgb": encode_rgb(rgb, config),
        "alpha": encode_picture(alpha),
        "normal": encode_picture(encode_normals(normal)),
        "json": json.dumps(view, separators=(",", ":")).encode(),
    }


def rig_cameras(rig: Rig, seed: int, identity: int) -> Cameras:
    """The cameras of one identity's views, jittered from the seed of the dataset."""
    return orbit(*rig.directions(seed, identity), rig.radius, rig.focal)
