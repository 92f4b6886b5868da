"""Once around the head, as files that loop."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infer.outputs.rings import level
from infer.turn import Turn
from manifests.errors import UserError
from train.run.validate import as_pixels

SMALL = 384
"""Pixels of a GIF at most, which at twice the size is four times as large a file."""
CODEC = "vp09"
"""VP9: of what OpenCV's wheels can write, the one that browsers play."""


def gif(turn: Turn, fps: float) -> bytes:
    """The pictures at eye level in one palette, so that colours do not flicker; loops for ever."""
    frames = [Image.fromarray(frame) for frame in _frames(turn)]
    for frame in frames:
        frame.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
    palette = _palette(frames)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    # In hundredths of a second, the GIF's own unit, rounded so that the whole turn takes its time.
    ends = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    out = io.BytesIO()
    indexed[0].save(
        out, "GIF", save_all=True, append_images=indexed[1:], duration=(10 * np.diff(ends)).tolist(), loop=0
    )
    return out.getvalue()


def mp4(turn: Turn, fps: float) -> bytes:
    """The pictures at eye level as VP9 in MP4.

    Raises:
        ValueError: this build of OpenCV cannot write it.
    """
    import cv2

    with tempfile.TemporaryDirectory(prefix="spinset-") as folder:
        file = Path(folder) / "turntable.mp4"
        size = (turn.resolution, turn.resolution)
        writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODEC), fps, size)
        if not writer.isOpened():
            raise UserError("mp4: this build of OpenCV has no VP9; install opencv-python from PyPI, or ask for gif")
        for frame in _frames(turn):
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return file.read_bytes()


def _frames(turn: Turn) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for view in level(turn):
        yield as_pixels(turn.rgb[view])


def _palette(frames: list[Image.Image]) -> Image.Image:
    """The colours of some frames from all around; rare ones, of lips and eyes, are found by k-means only."""
    some = [np.asarray(frame) for frame in frames[:: -(-len(frames) // 6)]]
    return Image.fromarray(np.concatenate(some)).quantize(256, kmeans=2)
