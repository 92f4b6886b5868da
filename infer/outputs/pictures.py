"""The views of a turn as PNG files."""

import io
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infer.turn import Turn
from train.run.validate import as_pixels


def names(turn: Turn) -> list[str]:
    """File names that sort as the views do and say where they were seen from, such as view_003_az+045.0_el-10.0.png."""
    angles = zip(turn.azimuth.tolist(), turn.elevation.tolist(), strict=True)
    # Adding zero makes -0.04 no "-0.0".
    return [
        f"view_{view:03d}_az{round(a, 1) + 0.0:+06.1f}_el{round(e, 1) + 0.0:+05.1f}.png"
        for view, (a, e) in enumerate(angles)
    ]


def pictures(turn: Turn) -> Iterator[tuple[str, bytes]]:
    """images/ over white and, if there are any, normals/ over grey."""
    for folder, views in (("images", turn.rgb), ("normals", turn.normal)):
        if views is not None:
            for name, view in zip(names(turn), views, strict=True):
                yield f"{folder}/{name}", png(as_pixels(view))


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()
