"""Encodes and decodes pictures, with the same bytes every time; the members of shards and all other pictures go through it.

Pixels are uint8 sRGB values as they are stored: [h, w, 3] in the order RGB, [h, w, 4] with straight alpha, or [h, w] grey.
"""

import io
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

COMPRESS_LEVEL = 4
"""Level of zlib for PNG: half the time of Pillow's default 6, for files that are some percent larger."""


def encode_picture(
    pixels: UInt8[np.ndarray, "h w *c"], format: Literal["PNG", "JPEG", "WEBP"] = "PNG", **options: Any
) -> bytes:
    """The bytes of a picture file; `options` are those of Pillow for the format, such as `quality` or `lossless`."""
    out = io.BytesIO()
    if format == "PNG":
        options = {"compress_level": COMPRESS_LEVEL, **options}
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def decode_picture(data: bytes, grey: bool = False) -> UInt8[np.ndarray, "h w *c"]:
    """The pixels of a picture file, as RGB or as grey values.

    OpenCV decodes to the same pixels as Pillow, JPEG in half the time.

    Raises:
        ValueError: the data is not a whole picture.
    """
    import cv2

    mode = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
    if pixels is None:
        raise ValueError("does not decode")
    return np.asarray(pixels)
