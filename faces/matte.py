"""Alphas of photos: from a face parser, or from a background of one colour."""

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from faces.bisenet import BiSeNet
from manifests.errors import UserError

TOLERANCE = 12
"""Largest difference of a pixel of a uniform background from the colour of the border, in any channel of 255: JPEG's noise."""
UNIFORM = 0.5
"""Smallest share of the upper and side borders that has that colour."""
MIN_SHARE = 0.02
"""Smallest share of a picture that a head fills."""


def parsed_alpha(parser: BiSeNet, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Opaque where the parser sees a person, clothes and hats included; with a hard edge, as in the official cropping."""
    return np.where(parser.classes(torch.from_numpy(rgb)).numpy() > 0, 255, 0).astype(np.uint8)


def uniform_alpha(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Transparent where the colour of the border is connected to the border; equal colours inside the head stay opaque.

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
    """The reason why an alpha cannot be that of a head, or an empty text."""
    share = (alpha > 127).mean()
    return "" if share >= MIN_SHARE else f"only {share:.1%} of it is left once its background is taken away"
