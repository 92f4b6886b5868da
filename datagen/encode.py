"""Encodes a view into the members of a sample, with the same bytes every time."""

import json
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from datagen.config import ImageConfig
from geometry.meshes import encode_normals
from manifests.pictures import encode_picture


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
