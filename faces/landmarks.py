"""Five points of a face in a view, from the known camera, and the crops that face recognisers read.

Points are ordered as insightface orders them: the two eyes, the nose, the two corners of the mouth, the subject's right
first (it lies on the left of a frontal picture).
"""

import json

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from geometry.cameras import Cameras

ORDER = ("eye_right", "eye_left", "nose", "mouth_right", "mouth_left")

AVERAGE = {
    "eye_right": (-0.0571, 0.0108, 0.1354),
    "eye_left": (0.0571, 0.0108, 0.1354),
    "nose": (0.0, -0.0611, 0.1975),
    "mouth_right": (-0.0457, -0.1136, 0.1411),
    "mouth_left": (0.0457, -0.1136, 0.1411),
}
"""World positions for sources that record none: the mean of 160 procedural heads, which fill the frame as PanoHead's
heads do. The points of single heads deviate from it by 0.002 (eyes) to 0.007 (mouth), a tenth of the distance of the eyes."""

SIZE = 112
"""Side of the crops that recognisers of insightface read, in pixels."""

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
"""Pixels of the five points in a crop for ArcFace. Source: insightface, face_align."""


def face_points(facts: str | None = None) -> Float[np.ndarray, "5 3"]:
    """World positions of an identity's five points: those in `facts`, a text of JSON, or else those of the average head."""
    own = json.loads(facts or "{}").get("landmarks")
    points = own if own and all(name in own for name in ORDER) else AVERAGE
    return np.array([points[name] for name in ORDER], np.float32)


def mirrored(points: Float[np.ndarray, "5 3"]) -> Float[np.ndarray, "5 3"]:
    """The points of a face on the back of the head: half a turn around the vertical axis."""
    return points * np.array([-1, 1, -1], np.float32)


def project(points: Float[np.ndarray, "5 3"], cameras: Cameras, resolution: int) -> Float[np.ndarray, "v 5 2"]:
    """The points in every view, in pixels whose centres are integers, as in OpenCV."""
    return cameras.project(torch.from_numpy(points), resolution)[..., :2].numpy() - 0.5


def similarity_transform(
    points: Float[np.ndarray, "v 5 2"], target: Float[np.ndarray, "5 2"]
) -> Float[np.ndarray, "v 2 3"]:
    """The rotation, scale and shift (least squares, no mirror) that takes the points of each view to the target.

    In the plane these are the z -> a z + b of complex numbers, so the best a is a quotient of inner products. It
    equals Umeyama 1991 wherever that finds no mirror better.
    """
    z, w = points[..., 0] + 1j * points[..., 1], target[:, 0] + 1j * target[:, 1]
    dz, dw = z - z.mean(1, keepdims=True), w - w.mean()
    a = (dw * dz.conj()).sum(1) / np.maximum((abs(dz) ** 2).sum(1), 1e-12)
    b = w.mean() - a * z.mean(1)
    return np.stack([np.stack([a.real, -a.imag, b.real], -1), np.stack([a.imag, a.real, b.imag], -1)], 1)


def crops(
    pictures: UInt8[np.ndarray, "v h w 3"], points: Float[np.ndarray, "v 5 2"], size: int = SIZE
) -> UInt8[np.ndarray, "v s s 3"]:
    """Crops in which the points lie at TEMPLATE, turned and scaled; black beyond the border of the picture."""
    out = np.empty((len(pictures), size, size, 3), np.uint8)
    for crop, picture, matrix in zip(
        out, pictures, similarity_transform(points, TEMPLATE * (size / SIZE)), strict=True
    ):
        cv2.warpAffine(picture, matrix, (size, size), dst=crop)
    return out
