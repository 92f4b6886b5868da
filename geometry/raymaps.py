"""Ray maps: what tells a multiview model from where each of its views looks, one vector per latent cell.

A map holds the encoded origin and direction of the ray through each cell. Cameras come as world-to-OpenGL rotations
(`Cameras.view_rotation`) of an orbit around the head, relative to the first given view. Source: SpinMeRound, section 3.2
and its released code; the encoding is NeRF's with identity (3DiM).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.cameras import focal_from_fov, from_view_rotation
from geometry.directions import FOCAL, RADIUS
from geometry.rays import rays

RELEASED_FOV = 18.837


def ray_maps(
    rotation: Float[Tensor, "v 3 3"],
    cells: int,
    mode: Literal["released", "geometric"] = "released",
    origin_octaves: int = 15,
    direction_octaves: int = 8,
) -> Float[Tensor, "v c h w"]:
    """The maps of views at a latent resolution, in single precision, with 6 + 6 (origin_octaves + direction_octaves) channels.

    Mode `released` encodes the rays that the released weights know (see `released_rays`), `geometric` the true rays through
    the centres of the cells.
    """
    # Octave 14 makes 16384 times as much of an error, so half precision has no place here.
    with torch.autocast(rotation.device.type, enabled=False):
        shape, rotation = rotation.shape[:-2], rotation.float().reshape(-1, 3, 3)
        if mode == "released":
            origins, directions = released_rays(rotation, cells)
        else:
            origins, directions = rays(from_view_rotation(rotation, RADIUS, FOCAL), cells)
        spread = encode(origins, origin_octaves)[:, None, None].expand(-1, cells, cells, -1)
        map = torch.cat([spread, encode(directions, direction_octaves)], dim=-1)
    return map.permute(0, 3, 1, 2).reshape(*shape, -1, cells, cells)


def encode(points: Float[Tensor, "*n 3"], octaves: int) -> Float[Tensor, "*n c"]:
    """x, sin(2^k x) and sin(2^k x + pi/2) for k below `octaves`; octaves change slower than axes."""
    scales = 2.0 ** torch.arange(octaves, device=points.device)
    phases = (points[..., None, :] * scales[:, None]).flatten(-2)
    return torch.cat([points, phases.sin(), (phases + math.pi / 2).sin()], dim=-1)


def released_rays(
    rotation: Float[Tensor, "v 3 3"], cells: int
) -> tuple[Float[Tensor, "v 3"], Float[Tensor, "v h w 3"]]:
    """The rays of the released code: origins and directions, not of unit length.

    The focal length is one of normalised images while positions are counted in cells from the corner, and the origin
    lies behind the head, from where the rays run away from it. Source: SpinMeRound, dataset_camera_utils.
    """
    focal = focal_from_fov(RELEASED_FOV)
    w2c = torch.eye(4, device=rotation.device, dtype=rotation.dtype).repeat(len(rotation), 1, 1)
    w2c[:, :3, :3], w2c[:, 2, 3] = rotation, RADIUS
    # Inverted as a matrix, as there: a transpose rounds otherwise, and octaves make much of that.
    c2w = torch.linalg.inv(w2c)
    places = torch.arange(cells, device=rotation.device, dtype=rotation.dtype) - cells / 2
    row, column = torch.meshgrid(places, places, indexing="ij")
    in_camera = torch.stack([column / focal, -row / focal, -torch.ones_like(row)], dim=-1)
    return c2w[:, :3, 3], torch.einsum("vij,hwj->vhwi", c2w[:, :3, :3], in_camera)


def relative_rotations(
    rotation: Float[Tensor, "b v 3 3"], is_condition: Bool[Tensor, "b v"]
) -> Float[Tensor, "b v 3 3"]:
    """Rotations relative to the first view of each scene that has given ones, R_i R_0^T; others keep the head's own frame.

    So a photo always counts as angle 0, whoever it shows from where, and without a photo angle 0 is the front.
    """
    relative = rotation @ rotation[:, :1].transpose(-1, -2)
    return torch.where(is_condition.any(1)[:, None, None, None], relative, rotation)
