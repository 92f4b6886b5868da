"""One HTML file to turn a head by dragging: the pictures are inside the file, and it loads nothing from a server."""

import base64
from dataclasses import dataclass

from jaxtyping import Float32
from torch import Tensor

from geometry.directions import turned, wrapped
from infer.outputs.pictures import level_ring, rings
from infer.views import HeadViews, to_bytes
from manifests.pictures import encode_picture
from pages.page import render

QUALITY = 88
"""WebP quality: a view of 512 px takes about 20 kB, and compression is not visible."""


@dataclass(frozen=True)
class ViewerImage:
    """A view as the page holds it; angles in degrees, the azimuth in [-180, 180)."""

    azimuth: float
    elevation: float
    place: str
    """The direction in words."""
    is_given: bool
    rgb: str
    """The picture as a data URI."""
    normal: str | None
    """Its normals as a data URI, if there are any."""


def viewer(views: HeadViews, title: str) -> str:
    """The page. #az=90&el=10 in its address, with `normals` and `play` after it, sets how it opens."""
    rows = rings(views)
    azimuth = wrapped(views.azimuth)
    images = [
        ViewerImage(
            round(float(azimuth[view]), 2),
            round(float(views.elevation[view]), 2),
            place(float(azimuth[view]), float(views.elevation[view])),
            bool(views.is_given[view]),
            _webp(views.rgb[view]),
            None if views.normal is None else _webp(views.normal[view]),
        )
        for view in range(len(views))
    ]
    ring = level_ring(views)
    return render(
        "infer.outputs",
        "viewer.html",
        title=title,
        views=images,
        first=int(ring[turned(azimuth[ring]).argmin()]),
        step=360 / len(ring),
        levels=sorted(round(float(views.elevation[row[0]]), 2) for row in rows) if len(rows) > 1 else [],
        resolution=views.resolution,
    )


def place(azimuth: float, elevation: float) -> str:
    """The direction of a view in words, such as "30 degrees to the left, 10 up"; left is the subject's own."""
    away, height = round(abs(azimuth)), round(abs(elevation))
    if away in (0, 180):
        words = "front" if away == 0 else "back"
    else:
        words = f"{away} degrees to the {'left' if azimuth > 0 else 'right'}"
    return f"{words}, {height} {'up' if elevation > 0 else 'down'}" if height else words


def _webp(view: Float32[Tensor, "3 h w"]) -> str:
    data = encode_picture(to_bytes(view), "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
