"""One identity, from its seed to the encoded samples of all its views."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from datagen.config import ImageConfig, MeshConfig
from datagen.encode import encode_view
from datagen.heads import Head, HeadSource
from datagen.meshing import MeshFigures, extract
from datagen.preview import Judge
from datagen.rigs import Rig
from geometry.cameras import Cameras, orbit
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh
from manifests import schema

VIEWS_PER_BATCH = 5


@dataclass(frozen=True)
class Recipe:
    """What is made of every identity of a dataset."""

    rig: Rig
    seed: int
    resolution: int
    image: ImageConfig
    mesh: MeshConfig
    tag: dict[str, str]
    """What every sample's JSON says of its origin."""


@dataclass(frozen=True, eq=False)
class Made:
    """One finished identity: the facts of its row, its samples in order (index row, members), and its mesh."""

    facts: dict[str, Any]
    figures: MeshFigures
    samples: list[tuple[dict[str, Any], dict[str, bytes]]]
    mesh: Mesh


@dataclass(frozen=True, eq=False)
class Rejected:
    """One identity of which no more is made, and why."""

    facts: dict[str, Any]
    reason: str


def make_identity(
    source: HeadSource, recipe: Recipe, identity: int, beside: ThreadPoolExecutor, judge: Judge | None = None
) -> Iterator[tuple[str, int] | Made | Rejected]:
    """Make one identity; yields (stage, views done) as it goes, and last what it made, or that the judge rejects it.

    Views are rendered here; meshing, normals and encoding run in `beside` at the same time. Its threads take tasks in
    order, so the mesh, which all encoding waits for, is never stuck behind a view that waits for it.
    """
    views = len(recipe.rig)
    yield "head", 0
    head = source.head(recipe.seed + identity)
    if judge is not None:
        yield "preview", 0
        if reason := _look(head, recipe, identity, judge):
            return (yield Rejected(head.facts(), reason))
    rows, cameras = _views(recipe, identity)
    meshing = beside.submit(_mesh, head, recipe.mesh)
    encoding: list[Future[dict[str, bytes]]] = []
    try:
        for first in range(0, views, VIEWS_PER_BATCH):
            yield "views", first
            batch = slice(first, first + VIEWS_PER_BATCH)
            for row, rgb, alpha in zip(rows[batch], *_render(head, cameras[batch], recipe.resolution), strict=True):
                camera = cameras[row["view"] : row["view"] + 1]
                encoding.append(beside.submit(_encode, recipe, row, camera, rgb, alpha, meshing))
        yield "mesh", views
        mesh, figures, _ = meshing.result()
        yield "encode", views
        samples = [(row, members.result()) for row, members in zip(rows, encoding, strict=True)]
    finally:
        for waiting in (*encoding, meshing):
            waiting.cancel()
    yield Made(head.facts(), figures, samples, mesh)


def told(facts: dict[str, Any]) -> dict[str, Any]:
    """What a source says of a head, as columns of its row."""
    rest = dict(facts)
    hashed = rest.pop("latent_sha256")
    return {"latent_sha256": hashed, "defects": rest.get("defects"), "facts": json.dumps(rest, sort_keys=True)}


def _look(head: Head, recipe: Recipe, identity: int, judge: Judge) -> str | None:
    """Why the judge rejects a head, from small views of it."""
    rig = Rig("preview", judge.azimuth, judge.elevation)
    rows, cameras = _views(replace(recipe, rig=rig), identity)
    rgb, alpha = _render(head, cameras, judge.resolution)
    row = {"identity": identity, "mesh": None, **told(head.facts())}
    views = pa.Table.from_pylist(rows, pa.schema([schema.VIEWS.field(name) for name in rows[0]]))
    return judge(row, views, {"rgb": list(rgb), "alpha": list(alpha)})


def _views(recipe: Recipe, identity: int) -> tuple[list[dict[str, Any]], Cameras]:
    """The index row and the camera of every view of an identity."""
    azimuth, elevation = recipe.rig.directions(recipe.seed, identity)
    cameras = rig_cameras(recipe.rig, recipe.seed, identity)
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
        for view in range(len(recipe.rig))
    ]
    return rows, cameras


def _render(
    head: Head, cameras: Cameras, resolution: int
) -> tuple[UInt8[np.ndarray, "v h w 3"], UInt8[np.ndarray, "v h w"]]:
    """Colour and alpha in 255 steps; as bytes from here on, because every view waits in memory for the mesh."""
    seen = head.render(cameras, resolution)
    rgb, alpha = ((x.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy() for x in (seen.rgb, seen.alpha))
    return rgb, alpha


def _mesh(head: Head, config: MeshConfig) -> tuple[Mesh, MeshFigures, EmbreeCaster]:
    mesh, figures = extract(head, config)
    return mesh, figures, EmbreeCaster(mesh)


def _encode(
    recipe: Recipe,
    row: dict[str, Any],
    camera: Cameras,
    rgb: UInt8[np.ndarray, "h w 3"],
    alpha: UInt8[np.ndarray, "h w"],
    meshing: "Future[tuple[Mesh, MeshFigures, EmbreeCaster]]",
) -> dict[str, bytes]:
    normal = next(meshing.result()[2].cast(camera, recipe.resolution)).smooth_normals()
    view = {
        "identity": row["identity"],
        "view": row["view"],
        "seed": recipe.seed + row["identity"],
        **recipe.tag,
        "azimuth": round(row["azimuth"], 4),
        "elevation": round(row["elevation"], 4),
        "c2w": [round(x, 7) for x in row["c2w"]],
        "K": [round(x, 7) for x in row["K"]],
    }
    return encode_view(rgb, alpha, normal, view, recipe.image)


def rig_cameras(rig: Rig, seed: int, identity: int) -> Cameras:
    """The cameras of one identity's views, jittered from the seed of the dataset."""
    return orbit(*rig.directions(seed, identity), rig.radius, rig.focal)
