"""Places a head of a capture stage in the world of datasets, from five points of the face in many views.

The points are detected in the views and triangulated by the known cameras; the similarity transform that takes them to the
average head's points takes every camera of the stage into the world of datasets. The world and the unit of a stage need not
be known.
"""

from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8

from faces.landmarks import face_points
from geometry.cameras import Cameras, look_at
from geometry.directions import FOCAL, RADIUS
from manifests.errors import UserError

TOLERANCE = 0.1
"""Largest distance of a detected point from the triangulated one that agrees, as a share of the face's size in that view."""
MISFIT = 0.04
"""Largest root mean square distance, in world units, of the five points from the average head's; a third of the distance
between the eyes."""
FINEST = 8
"""Largest oversampling when a picture is warped."""


@dataclass(frozen=True, eq=False)
class HeadFrame:
    """The similarity from a stage to the world of datasets: x -> scale rotation x + shift."""

    scale: float
    rotation: Float64[np.ndarray, "3 3"]
    shift: Float64[np.ndarray, "3"]
    points: Float64[np.ndarray, "5 3"]
    """The person's own five points in the world of datasets."""

    def c2w(self, w2c: Float64[np.ndarray, "v 4 4"]) -> Float64[np.ndarray, "v 4 4"]:
        """Camera to world matrices in the world of datasets."""
        turn = w2c[:, :3, :3].transpose(0, 2, 1)
        position = -np.einsum("vij,vj->vi", turn, w2c[:, :3, 3])
        out = np.tile(np.eye(4), (len(w2c), 1, 1))
        out[:, :3, :3] = self.rotation @ turn
        out[:, :3, 3] = self.scale * position @ self.rotation.T + self.shift
        return out


def head_frame(
    points: Float[np.ndarray, "v 5 2"],
    found: Bool[np.ndarray, " v"],
    K: Float64[np.ndarray, "v 3 3"],
    w2c: Float64[np.ndarray, "v 4 4"],
) -> HeadFrame:
    """Find the frame of a head from the points of its face in the views where one was `found`.

    Raises:
        UserError: faces were found in fewer than two views, or do not agree under the cameras.
    """
    if found.sum() < 2:
        raise UserError(f"a face was found in {found.sum()} of {len(found)} views, two are needed to place the head")
    homogeneous = np.concatenate([points[found], np.ones((int(found.sum()), 5, 1))], -1)
    rays = np.einsum("vij,vpj->vpi", np.linalg.inv(K[found]), homogeneous)[..., :2]
    size = np.linalg.norm(rays[:, :, None] - rays[:, None], axis=-1).max((1, 2))
    agreed = [_agreed(rays[:, p], w2c[found, :3], TOLERANCE * size) for p in range(5)]
    own, share = np.stack([point for point, _ in agreed]), np.mean([within.mean() for _, within in agreed])
    if share <= 0.5:
        raise UserError(
            f"only {share:.0%} of the points that were found agree on a face; the cameras do not fit the views"
        )
    average = face_points().astype(np.float64)
    scale, rotation, shift = similarity_3d(own, average)
    placed = scale * own @ rotation.T + shift
    misfit = float(np.sqrt(((placed - average) ** 2).sum(1).mean()))
    if misfit > MISFIT:
        raise UserError(
            f"the points of the face lie {misfit:.2f} off a face's in space; the cameras do not fit the views"
        )
    return HeadFrame(scale, rotation, shift, placed)


def _agreed(
    rays: Float64[np.ndarray, "v 2"], w2c: Float64[np.ndarray, "v 3 4"], tolerance: Float64[np.ndarray, " v"]
) -> tuple[Float64[np.ndarray, "3"], Bool[np.ndarray, " v"]]:
    """The point that most views agree on, and which views agree: the best of all pairs, refined by all that agree."""
    best: Bool[np.ndarray, " v"] = np.zeros(len(rays), bool)
    least = np.inf
    for pair in combinations(range(len(rays)), 2):
        error = _errors(_triangulated(rays[list(pair)], w2c[list(pair)]), rays, w2c) / tolerance
        within = error < 1
        if (within.sum(), -error[within].sum()) > (best.sum(), -least):
            best, least = within, float(error[within].sum())
    if best.sum() < 2:
        raise UserError("the faces that were found in the views do not agree on a place; the cameras do not fit them")
    return _triangulated(rays[best], w2c[best]), best


def _triangulated(rays: Float64[np.ndarray, "n 2"], w2c: Float64[np.ndarray, "n 3 4"]) -> Float64[np.ndarray, "3"]:
    """Triangulate a point from rays by the direct linear transform. Source: Hartley and Zisserman, section 12.2."""
    rows = rays[..., None] * w2c[:, None, 2] - w2c[:, :2]
    x = np.linalg.svd(rows.reshape(-1, 4))[2][-1]
    return x[:3] / x[3] if x[3] else np.full(3, np.nan)


def _errors(
    point: Float64[np.ndarray, "3"], rays: Float64[np.ndarray, "v 2"], w2c: Float64[np.ndarray, "v 3 4"]
) -> Float64[np.ndarray, " v"]:
    """Distances of a point from the rays of views, on the image plane at distance 1; infinite behind the camera."""
    x, y, z = (w2c @ np.append(point, 1.0)).T
    ahead = z > 1e-9
    z = np.where(ahead, z, 1.0)
    return np.where(ahead, np.hypot(x / z - rays[:, 0], y / z - rays[:, 1]), np.inf)


def similarity_3d(
    own: Float64[np.ndarray, "n 3"], target: Float64[np.ndarray, "n 3"]
) -> tuple[float, Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3"]]:
    """The least-squares similarity transform from points to others: scale, rotation and shift. Source: Umeyama 1991."""
    a, b = own - own.mean(0), target - target.mean(0)
    U, S, V = np.linalg.svd(b.T @ a)
    mirror = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ V))])
    rotation = U @ (mirror[:, None] * V)
    scale = float((S * mirror).sum() / (a**2).sum())
    return scale, rotation, target.mean(0) - scale * own.mean(0) @ rotation.T


def straightened(
    picture: UInt8[np.ndarray, "h w *c"],
    K: Float64[np.ndarray, "3 3"],
    c2w: Float64[np.ndarray, "4 4"],
    resolution: int,
    beyond: int = 255,
) -> tuple[UInt8[np.ndarray, "s s *c"], Cameras]:
    """Rotate a camera in its place so that it looks upright at the head, and frame the picture as datasets do.

    The rotation of a camera is a homography, so the picture stays exact. Pixels outside the picture get the value `beyond`.
    """
    eye = torch.from_numpy(c2w[None, :3, 3])
    upright = look_at(eye, torch.zeros(3, dtype=torch.float64))
    focal = FOCAL * float(eye.norm()) / RADIUS
    # A warp of a finer picture aliases, so it is oversampled and averaged.
    finer = int(np.clip(round(K[0, 0] / (focal * resolution)), 1, FINEST))
    side = resolution * finer
    towards = np.array([[focal * side, 0, side / 2 - 0.5], [0, focal * side, side / 2 - 0.5], [0, 0, 1]])
    H = towards @ upright[0, :3, :3].numpy().T @ c2w[:3, :3] @ np.linalg.inv(K)
    fill = (beyond,) * (picture.shape[2] if picture.ndim == 3 else 1)
    warped = cv2.warpPerspective(picture, H, (side, side), flags=cv2.INTER_LINEAR, borderValue=fill)
    small = cv2.resize(warped, (resolution, resolution), interpolation=cv2.INTER_AREA) if finer > 1 else warped
    intrinsics = torch.tensor([[[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]]])
    return np.asarray(small), Cameras(upright.float(), intrinsics.float())
