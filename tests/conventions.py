"""The inverses of camera conventions, which nothing but tests needs."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras, _rigid, to_opengl


def from_opengl(c2w: Float[Tensor, "*b 4 4"], K: Float[Tensor, "*b 3 3"]) -> Cameras:
    """Cameras of OpenGL camera-to-world matrices; the change of axes is its own inverse."""
    return Cameras(to_opengl(Cameras(c2w, K)), K)


def from_colmap(
    quaternions: Float[Tensor, "v 4"],
    translations: Float[Tensor, "v 3"],
    pinhole: Float[Tensor, "v 4"],
    resolution: int,
) -> Cameras:
    """Cameras of COLMAP images; its pixel centres lie at +0.5 as ours do."""
    rotation = _rotation(quaternions).transpose(1, 2)
    c2w = _rigid(rotation, -(rotation @ translations[..., None])[..., 0])
    K = torch.zeros_like(c2w[:, :3, :3])
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = (pinhole / resolution).unbind(-1)
    K[:, 2, 2] = 1
    return Cameras(c2w, K)


def panohead_v(elevation: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """The vertical angle (radians) that makes PanoHead's sampler put the camera at a true elevation in degrees."""
    return math.pi / 2 * (1 - torch.sin(torch.deg2rad(elevation)))


def _rotation(quaternion: Float[Tensor, "v 4"]) -> Float[Tensor, "v 3 3"]:
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).reshape(-1, 3, 3)
