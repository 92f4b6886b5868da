"""Outputs made of pictures: PNG files, a contact sheet, films of the head turning once, and a page in which it is turned."""

import base64
import io
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from geometry.directions import turned, wrapped
from infer.views import HeadViews
from manifests.errors import UserError
from manifests.pictures import encode_picture
from pages.page import render
from train.batch import framed, to_bytes

SHEET_COLUMNS, TILE, LABEL = 12, 128, 18
"""Most views side by side in a contact sheet, and pixels of a tile's side and of the height of its label."""
GIF_SIDE = 384
"""Largest side of a GIF in pixels; twice the side makes a file four times as large."""
VIDEO_CODEC = "vp09"
"""The codec of films: of those that OpenCV's wheels can write, VP9 is the one that browsers play."""
SAME_GAP = 0.3
"""Degrees by which the gaps of an even ring may differ, because azimuths are rounded to tenths."""


def rings(views: HeadViews) -> list[Int[np.ndarray, " _"]]:
    """Positions of the views of each elevation by rising azimuth, from the highest; one ring if no azimuth occurs twice."""
    azimuth = np.round(views.azimuth % 360, 1) % 360
    if len(np.unique(azimuth)) == len(views):
        return [_around(azimuth)]
    elevation, order = np.round(views.elevation, 1), _around(azimuth)
    return [order[elevation[order] == level] for level in np.unique(elevation)[::-1]]


def level_ring(views: HeadViews) -> Int[np.ndarray, " _"]:
    """The ring nearest to eye level, of those with more than half as many views as the largest ring."""
    found = rings(views)
    largest = max(map(len, found))
    return min((ring for ring in found if 2 * len(ring) > largest), key=lambda ring: abs(views.elevation[ring].mean()))


def _around(azimuth: Float[np.ndarray, " v"]) -> Int[np.ndarray, " v"]:
    """The order of rising azimuth from 0, or from behind the widest gap, so that an arc across the front stays one piece."""
    order = np.argsort(azimuth, kind="stable")
    gaps = (azimuth[order] - np.roll(azimuth[order], 1)) % 360
    return np.roll(order, -int(gaps.argmax())) if gaps.max() > gaps[0] + SAME_GAP else order


def file_names(views: HeadViews) -> list[str]:
    """File names in the order of the views, with their directions, such as view_003_az+045.0_el-10.0.png."""
    angles = zip(views.azimuth.tolist(), views.elevation.tolist(), strict=True)
    # Adding zero turns -0.0 into 0.0.
    return [
        f"view_{view:03d}_az{round(a, 1) + 0.0:+06.1f}_el{round(e, 1) + 0.0:+05.1f}.png"
        for view, (a, e) in enumerate(angles)
    ]


def png_files(views: HeadViews) -> Iterator[tuple[str, bytes]]:
    """The views below images/, over white, and their normals below normals/, over grey, if there are any."""
    for folder, pictures in (("images", views.rgb), ("normals", views.normal)):
        if pictures is not None:
            for name, picture in zip(file_names(views), pictures, strict=True):
                yield f"{folder}/{name}", encode_picture(to_bytes(picture))


def sheet(views: HeadViews) -> UInt8[np.ndarray, "h w 3"]:
    """A contact sheet: rings of pictures over their normals, from the highest; given views have a dark frame."""
    rows = [part for ring in rings(views) for part in np.array_split(ring, math.ceil(len(ring) / SHEET_COLUMNS))]
    members = [framed(views.rgb, torch.from_numpy(views.is_condition))]
    if views.normal is not None:
        members.append(views.normal)
    row_height = len(members) * TILE + LABEL
    image = Image.new("RGB", (max(map(len, rows)) * TILE, len(rows) * row_height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    one_elevation = np.ptp(np.round(views.elevation, 1)) == 0
    for top, row in zip(range(0, image.height, row_height), rows, strict=True):
        for left, view in zip(range(0, image.width, TILE), row, strict=False):
            for place, member in enumerate(members):
                tile = Image.fromarray(to_bytes(member[view])).resize((TILE, TILE), Image.Resampling.LANCZOS)
                image.paste(tile, (left, top + place * TILE))
            text = f"{views.azimuth[view]:+.0f}" + ("" if one_elevation else f", {views.elevation[view]:+.0f}")
            middle = (left + TILE / 2, top + row_height - LABEL / 2)
            draw.text(middle, text, fill="#555", font=font, anchor="mm")
    return np.asarray(image)


def gif(views: HeadViews, fps: float) -> bytes:
    """The views at eye level as a GIF that loops, in one palette, so that colours do not flicker."""
    frames = [Image.fromarray(frame) for frame in _frames(views)]
    for frame in frames:
        frame.thumbnail((GIF_SIDE, GIF_SIDE), Image.Resampling.LANCZOS)
    palette = _palette(frames)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    # GIF counts hundredths of a second; rounding the ends and not the lengths keeps the length of the whole film.
    ends = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    out = io.BytesIO()
    indexed[0].save(
        out, "GIF", save_all=True, append_images=indexed[1:], duration=(10 * np.diff(ends)).tolist(), loop=0
    )
    return out.getvalue()


def mp4(views: HeadViews, fps: float) -> bytes:
    """The views at eye level as VP9 in MP4; raises UserError if this build of OpenCV cannot write it."""
    import cv2

    with tempfile.TemporaryDirectory(prefix="spinset-") as folder:
        file = Path(folder) / "turntable.mp4"
        size = (views.resolution, views.resolution)
        writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*VIDEO_CODEC), fps, size)
        if not writer.isOpened():
            raise UserError("mp4: this build of OpenCV has no VP9; install opencv-python from PyPI, or ask for gif")
        for frame in _frames(views):
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return file.read_bytes()


def _frames(views: HeadViews) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for view in level_ring(views):
        yield to_bytes(views.rgb[view])


def _palette(frames: list[Image.Image]) -> Image.Image:
    """256 colours of six frames from all around, by k-means, which keeps the rare colours of lips and eyes."""
    some = [np.asarray(frame) for frame in frames[:: -(-len(frames) // 6)]]
    return Image.fromarray(np.concatenate(some)).quantize(256, kmeans=2)


QUALITY = 88
"""WebP quality: a view of 512 px takes about 20 kB, and compression is not visible."""


@dataclass(frozen=True)
class ViewerImage:
    """A view as the page holds it; angles in degrees, the azimuth in [-180, 180)."""

    azimuth: float
    elevation: float
    place: str
    """The direction in words."""
    is_condition: bool
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
            bool(views.is_condition[view]),
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
