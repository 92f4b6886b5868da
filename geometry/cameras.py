"""Cameras, and their conversion between conventions; the signs of axes appear in this module only.

Canonical: OpenCV axes (x right, y down, z forward), camera-to-world matrices, intrinsics normalised by the image
size, pixel centres at +0.5. World: y up, the head at the origin in [-0.5, 0.5]^3, the face looks to +z. Azimuth grows
towards +x (the subject's own left), elevation towards +y; both in true degrees.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.directions import FOCAL, RADIUS

_OPENGL_SIGNS = torch.tensor([1.0, -1.0, -1.0])
"""Signs from OpenCV to OpenGL camera axes: y up instead of down, z towards the viewer instead of forward."""


@dataclass(frozen=True, eq=False)
class Cameras:
    """Pinhole cameras of any batch shape: OpenCV camera-to-world matrices and intrinsics normalised by the image size.

    Indexing and `len` go by the first axis, as with tensors; `cameras[None]` adds one.
    """

    c2w: Float[Tensor, "*b 4 4"]
    K: Float[Tensor, "*b 3 3"]

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, views: slice | list[int] | Tensor | None) -> "Cameras":
        return Cameras(self.c2w[views], self.K[views])

    @property
    def positions(self) -> Float[Tensor, "*b 3"]:
        """Camera centres in the world."""
        return self.c2w[..., :3, 3]

    @property
    def w2c(self) -> Float[Tensor, "*b 4 4"]:
        """World-to-camera matrices (the rigid inverse of `c2w`)."""
        rotation = self.c2w[..., :3, :3].mT
        return _rigid(rotation, -(rotation @ self.c2w[..., :3, 3, None])[..., 0])

    @property
    def view_rotation(self) -> Float[Tensor, "*b 3 3"]:
        """Rotations from the world to OpenGL camera axes (x right, y up, z to the viewer), the frame of normal maps."""
        return _OPENGL_SIGNS.to(self.c2w)[:, None] * self.c2w[..., :3, :3].mT

    def pixel_K(self, resolution: int) -> Float[Tensor, "*b 3 3"]:
        """Intrinsics in pixels of a square image."""
        scale = torch.tensor([resolution, resolution, 1.0], dtype=self.K.dtype, device=self.K.device)
        return self.K * scale[:, None]

    def project(self, points: Float[Tensor, "n 3"], resolution: int) -> Float[Tensor, "*b n 3"]:
        """Pixel x, pixel y and z depth of world points in every view; pixel (0, 0) has its centre at (0.5, 0.5)."""
        w2c = self.w2c
        in_camera = points @ w2c[..., :3, :3].mT + w2c[..., None, :3, 3]
        in_image = in_camera @ self.pixel_K(resolution).mT
        return torch.cat([in_image[..., :2] / in_image[..., 2:], in_camera[..., 2:]], dim=-1)

    def to(self, device: torch.device | str) -> "Cameras":
        return Cameras(self.c2w.to(device), self.K.to(device))


def intrinsics(focal: float = FOCAL, views: int = 1) -> Float[Tensor, "v 3 3"]:
    """Normalised intrinsics with the principal point in the middle of the image."""
    K = torch.tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
    return K.repeat(views, 1, 1)


def focal_from_fov(fov_degrees: float) -> float:
    """Normalised focal length of EG3D's "field of view", with its truncated constants (18.837 degrees give 4.2634).

    Source: EG3D and PanoHead, camera utilities. The 1.414 makes this angle roughly a diagonal one.
    """
    return 1 / (math.tan(fov_degrees * 3.14159 / 360) * 1.414)


def look_at(eyes: Float[Tensor, "*b 3"], target: Float[Tensor, "*b 3"] | Float[Tensor, "3"]) -> Float[Tensor, "*b 4 4"]:
    """Camera-to-world matrices of upright cameras at `eyes` that look at `target`.

    A camera straight above or below its target has no upright pose: its matrix holds NaN, as the official sampler's.
    """
    forward = torch.nn.functional.normalize(target - eyes, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=eyes.dtype, device=eyes.device).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.nn.functional.normalize(torch.linalg.cross(forward, right), dim=-1)
    return _rigid(torch.stack([right, down, forward], dim=-1), eyes)


def orbit(
    azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"], radius: float = RADIUS, focal: float = FOCAL
) -> Cameras:
    """Cameras on a sphere around the head that look at its centre; true degrees, elevation within (-90, 90)."""
    if np.any(np.abs(elevation) >= 90):
        raise ValueError(
            f"elevation {np.max(np.abs(elevation)):g}: a camera above or below the head has no upright pose"
        )
    a, e = np.radians(azimuth, dtype=np.float64), np.radians(elevation, dtype=np.float64)
    eyes = radius * np.stack([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)], axis=-1)
    c2w = look_at(torch.from_numpy(eyes), torch.zeros(3, dtype=torch.float64))
    return Cameras(c2w.float(), intrinsics(focal, len(eyes)))


def azimuth_elevation(c2w: Float[Tensor, "*b 4 4"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """Azimuth in (-180, 180] and elevation of camera positions seen from the origin, in degrees."""
    x, y, z = c2w[..., :3, 3].unbind(-1)
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))


def to_opengl(cameras: Cameras) -> Float[Tensor, "*b 4 4"]:
    """Camera-to-world matrices in OpenGL camera axes, as in nerfstudio's and Blender's transforms.json."""
    signs = torch.cat([_OPENGL_SIGNS, torch.ones(1)])
    return cameras.c2w * signs.to(cameras.c2w)


Z_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""Rotation from the world of datasets (y up, face to +z) to Blender's (z up, face to -y), as nerfstudio and FaceLift use."""


def to_z_up(cameras: Cameras) -> Cameras:
    """The cameras in a world whose z axis is up."""
    turn = torch.eye(4)
    turn[:3, :3] = Z_UP
    return Cameras(turn @ cameras.c2w, cameras.K)


def to_colmap(
    cameras: Cameras, resolution: int
) -> tuple[Float[Tensor, "v 4"], Float[Tensor, "v 3"], Float[Tensor, "v 4"]]:
    """COLMAP's world-to-camera quaternions (w x y z) and translations, and PINHOLE pixel parameters (fx fy cx cy)."""
    w2c, K = cameras.w2c, cameras.pixel_K(resolution)
    pinhole = torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], dim=-1)
    return _quaternion(w2c[:, :3, :3]), w2c[:, :3, 3], pinhole


def eg3d_labels(cameras: Cameras) -> Float[Tensor, "v 25"]:
    """EG3D's camera labels: the 16 numbers of c2w and the 9 of the normalised K, row by row."""
    return torch.cat([cameras.c2w.flatten(1), cameras.K.flatten(1)], dim=-1)


def from_eg3d_labels(labels: Float[Tensor, "v 25"]) -> Cameras:
    """Cameras of EG3D's 25 numbers, which have the axes and normalised intrinsics of `Cameras`."""
    return Cameras(labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3))


def panohead_look_at(
    h: Float[Tensor, " v"], v: Float[Tensor, " v"], pivot: Float[Tensor, "3"], radius: float = RADIUS
) -> Float[Tensor, "v 4 4"]:
    """Camera-to-world matrices of PanoHead's look-at sampler; h and v in radians, (pi/2, pi/2) is the front.

    v is no angle of the camera but uniform in its height: sin(elevation) = 1 - 2 v / pi. The pivot turns the gaze and
    leaves the camera on its sphere around the origin. Source: PanoHead, camera_utils.py, LookAtPoseSampler.
    """
    phi = torch.arccos(1 - 2 * v.clamp(1e-5, math.pi - 1e-5) / math.pi)
    theta = math.pi - h
    eyes = radius * torch.stack([phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()], dim=-1)
    return look_at(eyes, pivot)


def from_view_rotation(rotation: Float[Tensor, "*b 3 3"], radius: float = RADIUS, focal: float = FOCAL) -> Cameras:
    """Cameras that look at the head's centre with a given world-to-OpenGL rotation, such as SpinMeRound's."""
    signs = _OPENGL_SIGNS.to(rotation)
    c2w = _rigid(rotation.mT * signs, radius * rotation[..., 2, :])
    return Cameras(c2w, intrinsics(focal)[0].to(rotation).expand_as(rotation))


def spinmeround_rotation(
    pitch: Float[Tensor, " v"], yaw: Float[Tensor, " v"], roll: Float[Tensor, " v"]
) -> Float[Tensor, "v 3 3"]:
    """World-to-OpenGL rotations of SpinMeRound's head poses in degrees: R = Rz(roll) Ry(yaw) Rx(pitch).

    The head is pitched before it is turned, so that pitch is the elevation of the camera at yaw 0 only; at yaw 90 it rolls the
    camera about its optical axis. Ry turns the other way than the textbook's. Source: SpinMeRound's released ray maps and
    the label builder of its cropping code.
    """
    # Multiplied first and divided then, as there: its last digits matter to the octaves of a ray map.
    radians = [angle * math.pi / 180 for angle in (pitch, yaw, roll)]
    (cp, cy, cr), (sp, sy, sr) = [r.cos() for r in radians], [r.sin() for r in radians]
    zero, one = torch.zeros_like(cp), torch.ones_like(cp)
    Rx = torch.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], dim=-1).reshape(-1, 3, 3)
    Ry = torch.stack([cy, zero, -sy, zero, one, zero, sy, zero, cy], dim=-1).reshape(-1, 3, 3)
    Rz = torch.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], dim=-1).reshape(-1, 3, 3)
    return Rz @ Ry @ Rx


def _rigid(rotation: Float[Tensor, "*b 3 3"], translation: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4 4"]:
    matrix = torch.zeros(*rotation.shape[:-2], 4, 4, dtype=rotation.dtype, device=rotation.device)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def _quaternion(rotation: Float[Tensor, "v 3 3"]) -> Float[Tensor, "v 4"]:
    """Unit quaternions w x y z with w >= 0: the row of 4 q q^T whose diagonal is largest, so never a small one."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    rows = [
        [1 + a + e + i, h - f, c - g, d - b],
        [h - f, 1 + a - e - i, b + d, c + g],
        [c - g, b + d, 1 - a + e - i, f + h],
        [d - b, c + g, f + h, 1 - a - e + i],
    ]
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q = torch.nn.functional.normalize(outer[torch.arange(len(outer)), largest], dim=-1)
    return torch.where(q[:, :1] < 0, -q, q)
