"""Encodes what a view consists of into the members of a sample, with the same bytes every time."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from geometry.meshes import Mesh, encode_normals
from manifests.errors import UserError
from manifests.pictures import encode_picture
from manifests.ply import encode_mesh

RGB_FORMATS = ("jpg", "png", "webp")


@dataclass(frozen=True)
class ImageConfig:
    """How colour images are stored; alpha and normals are always PNG."""

    format: str = "jpg"
    """jpg, png (lossless) or webp (lossless)."""
    quality: int = 95
    """Of jpg, 1 to 100; chroma is never subsampled."""

    def __post_init__(self) -> None:
        if self.format not in RGB_FORMATS:
            raise UserError(f"image format is {self.format!r}; it must be one of {', '.join(RGB_FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"image quality is {self.quality}; it must be from 1 to 100")

    @property
    def members(self) -> dict[str, str]:
        """The file extension of each member."""
        return {"rgb": f"rgb.{self.format}", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}


def encode_rgb(rgb: UInt8[np.ndarray, "h w 3"], config: ImageConfig) -> bytes:
    """A colour image in the format of the config."""
    if config.format == "jpg":
        return encode_picture(rgb, "JPEG", quality=config.quality, subsampling=0)
    if config.format == "webp":
        return encode_picture(rgb, "WEBP", lossless=True)
    return encode_picture(rgb, compress_level=6)


def encode_ply(mesh: Mesh) -> bytes:
    """A mesh as binary PLY."""
    return encode_mesh(mesh.vertices, mesh.faces)


def encode_view(
    rgb: UInt8[np.ndarray, "h w 3"],
    alpha: UInt8[np.ndarray, "h w"],
    normal: Float32[np.ndarray, "h w 3"],
    view: dict[str, Any],
    config: ImageConfig,
) -> dict[str, bytes]:
    """The members of one sample, in the order in which they lie in the shard."""
    return {
        "rgb": encode_rgb(rgb, config),
        "alpha": encode_picture(alpha),
        "normal": encode_picture(encode_normals(normal)),
        "json": json.dumps(view, separators=(",", ":")).encode(),
    }
