"""Sections of the HTML page of a generated dataset: its heads, the directions of its views, and its figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator, MultipleLocator
from PIL import Image

from geometry.cameras import orbit
from geometry.directions import wrapped
from manifests import schema
from manifests.dataset import Dataset
from manifests.pictures import decode_picture
from manifests.reader import read_members
from pages.charts import ACCENT, INK, LINE, PAPER, SOFT, chart
from pages.page import Section, picture, render

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
        Section("Rig", _rig(dataset)),
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


def _rig(dataset: Dataset) -> Markup:
    """The directions of the rig on a sphere, and those of all views on a map."""
    rig = dataset.plan.rig
    own = np.array([rig["azimuth"], rig["elevation"]])
    tables = [dataset.views(shard, ["azimuth", "elevation"]) for shard in dataset.committed()]
    seen = np.concatenate([[table.column(name).to_numpy() for name in table.column_names] for table in tables], 1)
    charts = {"sphere": _sphere(own), "map": _map(own, seen)}
    return render("datagen", "rig.html", id=rig["id"], grid=rig["grid"], views=own.shape[1], **charts)


def _sphere(own: Float[np.ndarray, "2 n"]) -> Markup:
    """Cameras on a sphere of radius 1, seen obliquely from above."""
    viewer = orbit(np.array([30.0]), np.array([25.0])).w2c[0, :3, :3]
    x, y, z = viewer @ orbit(*own, radius=1.0).positions.T

    def draw(axes: Axes) -> None:
        axes.set_position((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(-1.1, 1.1), ylim=(1.1, -1.1))
        for width, height in ((2, 2), (2, 0.84)):
            axes.add_patch(Ellipse((0, 0), width, height, fill=False, edgecolor=LINE))
        axes.plot(x[z > 0], y[z > 0], "o", color="none", markeredgecolor=SOFT, markersize=4)
        axes.add_patch(Ellipse((0, 0), 0.26, 0.34, facecolor=PAPER, edgecolor=SOFT, zorder=3))
        axes.plot([-0.06, -0.11, -0.06], [0.04, 0.08, 0.10], color=SOFT, linewidth=1, zorder=3)
        axes.plot(x[z <= 0], y[z <= 0], "o", color=ACCENT, markersize=5, zorder=3)

    return chart("cameras on a sphere", 260, 260, draw)


def _map(own: Float[np.ndarray, "2 n"], seen: Float[np.ndarray, "2 m"]) -> Markup:
    """The directions of the rig and of all views, by azimuth and elevation in degrees."""
    low, high = min(-20, *own[1], *seen[1]) - 5, max(20, *own[1], *seen[1]) + 5

    def draw(axes: Axes) -> None:
        axes.grid(True, axis="both")
        axes.plot(*seen, "o", color=ACCENT, markersize=2, markeredgewidth=0)
        axes.plot(*own, "o", color="none", markeredgecolor=INK, markeredgewidth=0.8, markersize=6)
        axes.xaxis.set(major_locator=MultipleLocator(45), major_formatter="{x:g}\N{DEGREE SIGN}")
        axes.yaxis.set(major_locator=MaxNLocator(6, steps=[1, 2, 3, 10]), major_formatter="{x:g}\N{DEGREE SIGN}")
        axes.set(xlim=(-185, 185), ylim=(low, high), xlabel="azimuth (degrees)", ylabel="elevation (degrees)")

    return chart("map of views", 720, 64 + round(2 * (high - low)), draw)
