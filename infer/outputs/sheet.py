"""A contact sheet: all views of a turn beside each other, with their azimuths."""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from infer.outputs.rings import rings
from infer.turn import Turn
from train.run.validate import as_pixels, framed

ACROSS, TILE, LABEL = 12, 128, 18
"""At most how many views lie side by side, and pixels of a view and of the line under it."""


def sheet(turn: Turn) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of pictures over rows of their normals, height by height; given views have a dark frame."""
    rows = [part for ring in rings(turn) for part in np.array_split(ring, math.ceil(len(ring) / ACROSS))]
    members = [framed(turn.rgb, torch.from_numpy(turn.is_given))]
    if turn.normal is not None:
        members.append(turn.normal)
    high = len(members) * TILE + LABEL
    image = Image.new("RGB", (max(map(len, rows)) * TILE, len(rows) * high), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    # A row of one height has no need to say it.
    flat = np.ptp(np.round(turn.elevation, 1)) == 0
    for top, row in zip(range(0, image.height, high), rows, strict=True):
        for left, view in zip(range(0, image.width, TILE), row, strict=False):
            for place, member in enumerate(members):
                tile = Image.fromarray(as_pixels(member[view])).resize((TILE, TILE), Image.Resampling.LANCZOS)
                image.paste(tile, (left, top + place * TILE))
            text = f"{turn.azimuth[view]:+.0f}" + ("" if flat else f", {turn.elevation[view]:+.0f}")
            middle = (left + TILE / 2, top + high - LABEL / 2)
            draw.text(middle, text, fill="#555", font=font, anchor="mm")
    return np.asarray(image)
