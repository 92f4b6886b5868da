"""Tells a head from its background: by the picture's own alpha, by a face parser, or by a background of one colour."""

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from faces.bisenet import BiSeNet
from manifests.errors import UserError

TOLERANCE = 12
"""How far from the colour of the border, in any channel of 255, a pixel of a uniform background may be: JPEG's noise."""
UNIFORM = 0.5
"""The share of the upper and side borders that must have that colour."""
LEAST = 0.02
"""The share of a picture that a head must fill."""


def parsed_alpha(parser: BiSeNet, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Opaque where the parser sees anything of a person, clothes and hats included; a hard edge, as released."""
    return np.where(parser.classes(torch.from_numpy(rgb)).numpy() > 0, 255, 0).astype(np.uint8)


def uniform_alpha(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Transparent where the colour of the border reaches in from it; like colours inside the head stay.

    Raises:
        ValueError: the border has no one colour.
    """
    border = np.concatenate([rgb[0], rgb[:, 0], rgb[:, -1]]).astype(int)
    colour = np.median(border, 0)
    if (np.abs(border - colour).max(1) <= TOLERANCE).mean() < UNIFORM:
        raise UserError("its background is not of one colour; give face-parsing weights (--matte.parser) instead")
    near = (np.abs(rgb - colour).max(2) <= TOLERANCE).astype(np.uint8)
    _, parts = cv2.connectedComponents(near, connectivity=4)
    outer = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return np.where(np.isin(parts, outer[outer > 0]), 0, 255).astype(np.uint8)


def emptiness(alpha: UInt8[np.ndarray, "h w"]) -> str:
    """Why an alpha cannot be that of a head, or nothing."""
    share = (alpha > 127).mean()
    return "" if share >= LEAST else f"only {share:.1%} of it is left once its background is taken away"
