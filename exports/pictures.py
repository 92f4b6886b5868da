"""Pictures and cameras of one identity in the forms that other tools read."""

import numpy as np
import torch

from geometry.cameras import Cameras
from manifests.pictures import decode_picture, encode_picture
from manifests.plan import Plan
from manifests.subset import KeptIdentity

COLOURS = {"white": "ffffff", "black": "000000", "grey": "808080"}


def cameras_of(identity: KeptIdentity) -> Cameras:
    """The cameras of an identity's views, in the order of their rows."""
    c2w, K = (identity.views.column(name).combine_chunks().flatten().to_numpy() for name in ("c2w", "K"))
    return Cameras(torch.from_numpy(c2w.reshape(-1, 4, 4).copy()), torch.from_numpy(K.reshape(-1, 3, 3).copy()))


def mask_png(alpha: bytes) -> bytes:
    """A mask whose pixels are 255 where the head covers at least half of them, else 0."""
    return encode_picture(np.where(decode_picture(alpha, grey=True) >= 128, np.uint8(255), np.uint8(0)))


def rgba_png(rgb: bytes, alpha: bytes, background: tuple[int, int, int] | None) -> bytes:
    """Straight (not premultiplied) RGBA, without the background in pixels that it covers partly."""
    colour, opacity = decode_picture(rgb), decode_picture(alpha, grey=True)
    if background is not None:
        a, under = opacity[..., None].astype(np.float32) / 255, np.array(background, np.float32)
        straight = np.where(a > 0, under + (colour - under) / np.maximum(a, 1 / 255), 0)
        colour = (straight.clip(0, 255) + 0.5).astype(np.uint8)
    return encode_picture(np.dstack([colour, opacity]))


def background_of(plan: Plan) -> tuple[int, int, int] | None:
    """The background colour of a dataset (0 to 255), white by default; None if it is not one colour."""
    name: str = plan.background
    if name == "own":
        return None
    red, green, blue = bytes.fromhex(COLOURS.get(name, name[1:]))
    return red, green, blue
