"""One HTML file that turns a head under the hand: its pictures are inside it, and it asks nothing of any server."""

import base64
import io
from dataclasses import dataclass

from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from geometry.directions import turned
from infer.outputs.rings import level, rings
from infer.turn import Turn
from pages.page import render
from train.run.validate import as_pixels

QUALITY = 88


@dataclass(frozen=True)
class Shown:
    """A view as the page holds it; angles in degrees, the azimuth in [-180, 180)."""

    azimuth: float
    elevation: float
    place: str
    is_given: bool
    rgb: str
    normal: str | None


def viewer(turn: Turn, title: str) -> str:
    """The page; #az=90&el=10, and `normals` and `play` after it, choose what it opens with."""
    rows = rings(turn)
    azimuth = (turn.azimuth + 180) % 360 - 180
    views = [
        Shown(
            round(float(azimuth[view]), 2),
            round(float(turn.elevation[view]), 2),
            place(float(azimuth[view]), float(turn.elevation[view])),
            bool(turn.is_given[view]),
            _webp(turn.rgb[view]),
            None if turn.normal is None else _webp(turn.normal[view]),
        )
        for view in range(len(turn))
    ]
    ring = level(turn)
    return render(
        "infer.outputs",
        "viewer.html",
        title=title,
        views=views,
        first=int(ring[turned(azimuth[ring]).argmin()]),
        step=360 / len(ring),
        levels=sorted(round(float(turn.elevation[row[0]]), 2) for row in rows) if len(rows) > 1 else [],
        resolution=turn.resolution,
    )


def place(azimuth: float, elevation: float) -> str:
    """Where a view was seen from, in words: "30 degrees to the left, 10 up"; left is the subject's own."""
    away, height = round(abs(azimuth)), round(abs(elevation))
    if away in (0, 180):
        words = "front" if away == 0 else "back"
    else:
        words = f"{away} degrees to the {'left' if azimuth > 0 else 'right'}"
    return f"{words}, {height} {'up' if elevation > 0 else 'down'}" if height else words


def _webp(view: Float32[Tensor, "3 h w"]) -> str:
    out = io.BytesIO()
    Image.fromarray(as_pixels(view)).save(out, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
