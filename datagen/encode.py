"""Encodes what a view consists of into the members of a sample, with the same bytes every time."""

import io
import json
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from datagen.config import ImageConfig
from geometry.meshes import Mesh
from geometry.normals import encode_normals


def encode_rgb(rgb: UInt8[np.ndarray, "h w 3"], config: ImageConfig) -> bytes:
    image, out = Image.fromarray(rgb), io.BytesIO()
    if config.format == "jpg":
        image.save(out, "JPEG", quality=config.quality, subsampling=0)
    elif config.format == "webp":
        image.save(out, "WEBP", lossless=True)
    else:
        image.save(out, "PNG")
    return out.getvalue()


def encode_png(pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()


def encode_ply(mesh: Mesh) -> bytes:
    """A mesh as binary PLY."""
    import trimesh
    from trimesh.exchange.ply import export_ply

    return export_ply(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))


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
        "alpha": encode_png(alpha),
        "normal": encode_png(encode_normals(normal)),
        "json": json.dumps(view, separators=(",", ":")).encode(),
    }
