"""Sections of the HTML page of a generated dataset: its heads, the directions of its views, and its figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from geometry.cameras import orbit
from geometry.directions import wrapped
from manifests import schema
from manifests.dataset import Dataset
from manifests.pictures import decode_picture
from manifests.reader import read_members
from pages.page import Section, picture, render, round_numbers

TURN = 24
"""Number of views of a turn around the head."""


@dataclass(frozen=True)
class Card:
    """One identity in the report."""

    row: dict[str, Any]
    seconds: float
    rgb: str
    normal: str
    sheet: str
    columns: int


def sections(dataset: Dataset) -> list[Section]:
    """The heads of a dataset to turn, its rig, and the figures of every identity; for small datasets."""
    cards = [card for shard in dataset.committed() for card in _cards(dataset, shard)]
    failed = [row for row in dataset.all_identities.to_pylist() if row["outcome"] == schema.FAILED]
    return [
        Section("Heads", render("datagen", "heads.html", cards=cards, size=_size(dataset))),
        Section("Rig", render("datagen", "rig.html", **_rig(dataset))),
        Section("Figures", render("datagen", "figures.html", cards=cards, failed=failed, plan=dataset.plan)),
    ]


def _size(dataset: Dataset) -> int:
    return min(dataset.plan.resolution, 160)


def _cards(dataset: Dataset, shard: int) -> list[Card]:
    views = dataset.views(shard)
    seconds = dataset.done(shard)["run"]["identity_seconds"]
    cards = []
    for row in dataset.identities(shard).to_pylist():
        if row["outcome"] != schema.KEPT:
            continue
        own = views.filter([identity == row["identity"] for identity in views.column("identity").to_pylist()])
        members = read_members(dataset, shard, own, "rgb", "normal")
        rgb, normal = ([decode_picture(data) for data in member] for member in members)
        azimuth, elevation = (own.column(name).to_numpy() for name in ("azimuth", "elevation"))
        turn = _turn(azimuth, elevation)
        columns = len(np.unique(np.round(azimuth / 7.2))) if len(azimuth) < 40 else 25
        sheet = _grid([image for pair in (rgb, normal) for image in pair], columns, 64)
        cards.append(
            Card(
                row,
                seconds[str(row["identity"])],
                picture(_grid([rgb[v] for v in turn], len(turn), _size(dataset))),
                picture(_grid([normal[v] for v in turn], len(turn), _size(dataset))),
                picture(sheet),
                len(turn),
            )
        )
    return cards


def _turn(azimuth: np.ndarray, elevation: np.ndarray) -> list[int]:
    """About TURN views once around the head near eye level, from the front on; the nearest view to each step."""
    steps = [wrapped(360 * k / TURN) for k in range(TURN)]
    away = [np.hypot(wrapped(azimuth - step), 2 * elevation) for step in steps]
    return list(dict.fromkeys(int(distance.argmin()) for distance in away))


def _grid(images: list[UInt8[np.ndarray, "h w 3"]], columns: int, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures side by side, row after row, each `size` pixels wide; the last row is filled with white."""
    small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) for image in images]
    small += [np.full_like(small[0], 255)] * (-len(small) % columns)
    return np.concatenate([np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)])


def _rig(dataset: Dataset) -> dict[str, Any]:
    """The directions of the rig and the real ones of all views, as points of a map and of a sphere."""
    rig = dataset.plan.rig
    tables = [dataset.views(shard, ["azimuth", "elevation"]) for shard in dataset.committed()]
    seen = [tuple(view.values()) for table in tables for view in table.to_pylist()]
    heights = [*rig["elevation"], *(e for _, e in seen)]
    return {
        "id": rig["id"],
        "grid": rig["grid"],
        "cells": list(zip(rig["azimuth"], rig["elevation"], strict=True)),
        "seen": [(round(a, 1), round(e, 1)) for a, e in seen],
        "sphere": _on_sphere(rig["azimuth"], rig["elevation"]),
        "elevations": round_numbers(min([-20.0, *heights]), max([20.0, *heights]), most=5),
    }


def _on_sphere(azimuth: list[float], elevation: list[float]) -> list[dict[str, float]]:
    """The positions of cameras on a drawn sphere of radius 100, seen obliquely from above."""
    viewer = orbit(np.array([30.0]), np.array([25.0])).w2c[0, :3, :3]
    seen = orbit(np.array(azimuth), np.array(elevation), radius=1.0).positions @ viewer.T
    return [{"x": round(100 * x, 1), "y": round(100 * y, 1), "near": round(-z, 2)} for x, y, z in seen.tolist()]
