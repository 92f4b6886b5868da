"""Measures of single views: silhouettes, flat areas, fog and sharpness. Arrays in, numbers out."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

WORKING = 128
"""Size, in pixels, to which larger pictures are reduced first, so that a measure means the same at every resolution."""

FLAT = 0.015
"""Largest difference of unit normals between neighbouring pixels, at WORKING size, where the surface is flat. On a ball of
40 px radius neighbours differ by 0.025 or more."""


def reduce(pictures: UInt8[np.ndarray, "v h w *c"]) -> Float[np.ndarray, "v s s *c"]:
    """Means of square blocks of pixels, so that the longer side is less than twice WORKING; values from 0 to 1."""
    block = max(1, pictures.shape[1] // WORKING)
    v, h, w, *c = pictures.shape
    h, w = h // block * block, w // block * block
    blocks = pictures[:, :h, :w].reshape(v, h // block, block, w // block, block, *c)
    return blocks.mean((2, 4), dtype=np.float32) / 255


def islands(mask: Bool[np.ndarray, "h w"]) -> float:
    """Area outside the largest connected blob, as a share of that blob; 0 for an empty picture."""
    areas = _blobs(mask)[1]
    return float(areas.sum() / areas.max() - 1) if len(areas) else 0.0


def iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union; NaN if both are empty."""
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else float("nan")


def facet(normals: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> float:
    """The largest flat piece of the surface as a share of the silhouette: heads are round, cuts are flat."""
    flat = mask.copy()
    flat[0], flat[:, 0] = False, False
    # A picture half as large shows normals that change twice as fast.
    limit = FLAT * WORKING / len(mask)
    flat[1:] &= np.linalg.norm(normals[1:] - normals[:-1], axis=-1) < limit
    flat[:, 1:] &= np.linalg.norm(normals[:, 1:] - normals[:, :-1], axis=-1) < limit
    areas = _blobs(flat)[1]
    return float(areas.max() / mask.sum()) if len(areas) else 0.0


def top_chord(mask: Bool[np.ndarray, "h w"]) -> float:
    """The head's width just below its top over that further below: 0.4 for a dome, near 1 for a flat cut; NaN if empty.

    The two depths are 1.5 % and 9 % of the picture; of a circle's chords, that is the root of their quotient.
    """
    label, areas = _blobs(mask)
    if not len(areas):
        return float("nan")
    width = (label == areas.argmax() + 1).sum(1)
    first = np.flatnonzero(width)[0]
    rows = np.arange(len(mask)) + 0.5
    near, far = (float(np.interp(first + depth * len(mask), rows, width)) for depth in (0.015, 0.09))
    return near / far if far else float("nan")


def fog(alpha: Float[np.ndarray, "h w"]) -> float:
    """Half-transparent area away from any contour, as a share of the head: a contour is one pixel wide, fog is not."""
    partial = (alpha > 0.02) & (alpha < 0.98)
    solid = (alpha >= 0.5).sum()
    return float(ndimage.binary_erosion(partial, np.ones((3, 3))).sum() / solid) if solid else float("nan")


def border(alpha: Float[np.ndarray, "h w"]) -> float:
    """The largest share of the top, left or right border (its upper half) that the head covers."""
    solid, half = alpha >= 0.5, len(alpha) // 2
    return float(max(solid[0].mean(), solid[:half, 0].mean(), solid[:half, -1].mean()))


def sharpness(luminance: UInt8[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]) -> float:
    """Variance of the Laplacian within the head, away from its contour; NaN where nothing is within."""
    within = np.asarray(ndimage.binary_erosion(inside, iterations=3), bool)
    edges: np.ndarray = cv2.Laplacian(luminance, cv2.CV_32F)
    return float(np.var(edges[within])) if within.any() else float("nan")


def _blobs(mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """Connected blobs: a label per pixel from 1, and their areas."""
    _, label, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return np.asarray(label), np.asarray(figures)[1:, cv2.CC_STAT_AREA]
