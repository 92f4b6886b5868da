"""The pose of a head in a photo, from 3D landmarks: rotation, scale and shift relative to a frame.

PanoHead's crop reads the 62 numbers of 3DDFA_V2 behind the FaceBoxes detector. Here 68 three-dimensional landmarks of
insightface take their place. What is the same: an orthographic camera, its turn, and a frame that ends up HALF_SIDE of
the face model wide around a point inside the head. What differs: 3DDFA fits identity and expression together with the
camera, landmarks are matched with one mean face; 3DDFA measures in the picture cropped by the first frame, landmarks
in the photo; and the mean face is not the Basel face model that 3DDFA uses, so its size and centre are carried over by
the eyes and the corners of the mouth (CENTRE), good to about a centimetre.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from faces.alignment import SIZE, Frame
from geometry.cameras import Cameras, from_view_rotation

HALF_SIDE = 1.0
"""Half the side of the refined frame in units of insightface's mean face.

In the Basel face model it is 511 / 2 * 2000 * 120 / 511 = 120,000 micrometres, whatever the picture; the eyes and the
corners of the mouth of both faces match at 120.0 mm for a unit."""

CENTRE = np.array([0.0, 0.06, -0.125])
"""The middle of the frame in the mean face (y up, z out of the face): the origin of the Basel face model moved by half
its mean depth, 37 mm, as PanoHead moves it."""

TDDFA_SIZE = 120
"""Side of the picture that 3DDFA reads, in pixels."""


@dataclass(frozen=True, eq=False)
class HeadPose:
    """The pose of a head relative to a frame."""

    rotation: Float[np.ndarray, "3 3"]
    """From the head (y up, face to z) to OpenGL camera axes of the frame's picture: `Cameras.view_rotation`."""
    scale: float
    """Factor by which the refined frame is larger than this one."""
    shift: Float[np.ndarray, "2"]
    """Distance of its centre to the right and upwards, in half sides of this frame."""

    @property
    def angles(self) -> tuple[float, float, float]:
        """Yaw, pitch and roll in degrees; yaw is positive where the camera stands on the subject's left."""
        R = self.rotation
        yaw = math.asin(min(1.0, max(-1.0, float(R[2, 0]))))
        return math.degrees(yaw), math.degrees(math.atan2(R[2, 1], R[2, 2])), math.degrees(math.atan2(R[1, 0], R[0, 0]))

    @property
    def camera(self) -> Cameras:
        """The one camera of this view: the label of PanoHead's crop."""
        return from_view_rotation(torch.from_numpy(np.asarray(self.rotation, np.float32))[None])


def tddfa_pose(
    camera: Float[np.ndarray, "3 4"], roi: Float[np.ndarray, "4"], mean_depth: float, size: int = SIZE
) -> HeadPose:
    """The pose from the first 12 parameters of 3DDFA_V2, for callers that run it.

    `roi` is the box that 3DDFA read, in pixels of the picture cropped by the first frame; `mean_depth` the mean z of its
    face model. Source: PanoHead, recrop_images.py.
    """
    axes = camera[:2, :3] / np.linalg.norm(camera[:2, :3], axis=1, keepdims=True)
    rotation = np.stack([*axes, np.cross(*axes)])
    at = camera[:2, 3] + camera[:2, 2] * mean_depth / 2
    box = (roi[2:] - roi[:2]) / TDDFA_SIZE
    in_crop = np.array([at[0] - 1, TDDFA_SIZE - at[1]]) * box + roi[:2]
    half = (size - 1) / 2
    scale = np.linalg.norm(camera[:2, :3], axis=1).mean() * 2000 * (roi[2:] - roi[:2]).mean() / (size - 1)
    return HeadPose(rotation, float(scale), (in_crop / half - 1) * [1, -1])


def landmark_pose(
    landmarks: Float[np.ndarray, "n 3"] | Float[np.ndarray, "n 2"], mean_face: Float[np.ndarray, "n 3"], frame: Frame
) -> HeadPose:
    """The pose from landmarks in pixels of the photo and the same points of insightface's mean face (y down).

    The scaled orthographic camera nearest to the least-squares affine one; like insightface's own angles it reads x and y
    of the landmarks only. Source: Umeyama 1991 for the nearest rotation.
    """
    up = np.array([1.0, -1.0, 1.0])
    points = np.column_stack([mean_face * up, np.ones(len(mean_face))])
    affine: Any = np.linalg.lstsq(points, landmarks[:, :2] * up[:2], rcond=None)[0].T
    u, sizes, v = np.linalg.svd(affine[:, :3], full_matrices=False)
    axes, scale = u @ v, sizes.mean()
    # The camera's x and y along the sides of the frame, which may lie askew in the photo.
    right = frame.right * up[:2] / np.linalg.norm(frame.right)
    axes = np.array([right, [-right[1], right[0]]]) @ axes
    centre = (affine @ [*CENTRE, 1.0]) * up[:2] - frame.centre
    side = float(np.linalg.norm(frame.right))
    shift = np.array([centre @ frame.right, -(centre @ frame.down)]) / side**2
    return HeadPose(np.stack([*axes, np.cross(*axes)]), float(scale * HALF_SIDE / side), shift)


def refined(frame: Frame, pose: HeadPose) -> Frame:
    """The frame moved and scaled to the head."""
    centre = frame.centre + frame.right * pose.shift[0] - frame.down * pose.shift[1]
    return Frame(centre, frame.right * pose.scale, frame.down * pose.scale)


def refusal(pose: HeadPose) -> str:
    """The reason why PanoHead's data excludes such a picture, or an empty text. Source: PanoHead, recrop_images.py."""
    if not 0.7 <= pose.scale <= 1.3:
        return f"the head is {pose.scale:.2f} times as large as its eyes and mouth suggest; 0.7 to 1.3 works"
    for value, what, most in zip(pose.angles, ("turned", "raised or lowered", "tilted"), (90, 80, 50), strict=True):
        if not abs(value) <= most:
            return f"the head is {what} by {abs(value):.0f} degrees; {most} or less works"
    if not np.abs(pose.shift).max() <= 1:
        return "the middle of the head lies outside the square around its eyes and mouth"
    return ""
