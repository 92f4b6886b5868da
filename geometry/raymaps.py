"""Ray maps, which condition a multiview model on its cameras: one encoded ray per latent cell.

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
"""Field of view in degrees of the released code, in EG3D's convention (see `focal_from_fov`)."""


def ray_maps(
    rotation: Float[Tensor, "*b 3 3"],
    cells: int,
    mode: Literal["released", "geometric"] = "released",
    origin_octaves: int = 15,
    direction_octaves: int = 8,
) -> Float[Tensor, "*b c h w"]:
    """The maps of views at a latent resolution, in single precision, with 6 + 6 (origin_octaves + direction_octaves) channels.

    Mode `released` encodes the rays that the released weights know (see `released_rays`), `geometric` the true rays through
    the centres of the cells.
    """
    # Octave 14 multiplies an error by 16384, so half precision does not suffice.
    with torch.autocast(rotation.device.type, enabled=False):
        shape, rotation = rotation.shape[:-2], rotation.float().reshape(-1, 3, 3)
        if mode == "released":
            origins, directions = released_rays(rotation, cells)
        else:
            origins, directions = rays(from_view_rotation(rotation, RADIUS, FOCAL), cells)
        spread = encode(origins, origin_octaves)[:, None, None].expand(-1, cells, cells, -1)
        maps = torch.cat([spread, encode(directions, direction_octaves)], dim=-1)
    return maps.permute(0, 3, 1, 2).reshape(*shape, -1, cells, cells)


def encode(points: Float[Tensor, "*n 3"], octaves: int) -> Float[Tensor, "*n c"]:
    """x, sin(2^k x) and sin(2^k x + pi/2) for k below `octaves`; octaves change slower than axes."""
    scales = 2.0 ** torch.arange(octaves, device=points.device)
    phases = (points[..., None, :] * scales[:, None]).flatten(-2)
    return torch.cat([points, phases.sin(), (phases + math.pi / 2).sin()], dim=-1)


def released_rays(
    rotation: Float[Tensor, "v 3 3"], cells: int
) -> tuple[Float[Tensor, "v 3"], Float[Tensor, "v h w 3"]]:
    """The rays of the released code: origins and directions, not of unit length.

    They are consistent but not geometric: the focal length is that of normalised images while positions are counted in cells,
    and the rays begin behind the head and run away from it. Source: SpinMeRound, dataset_camera_utils.
    """
    focal = focal_from_fov(RELEASED_FOV)
    w2c = torch.eye(4, device=rotation.device, dtype=rotation.dtype).repeat(len(rotation), 1, 1)
    w2c[:, :3, :3], w2c[:, 2, 3] = rotation, RADIUS
    # Inverted as a matrix, as there: a transpose rounds differently, and the octaves multiply the difference.
    c2w = torch.linalg.inv(w2c)
    positions = torch.arange(cells, device=rotation.device, dtype=rotation.dtype) - cells / 2
    row, column = torch.meshgrid(positions, positions, indexing="ij")
    in_camera = torch.stack([column / focal, -row / focal, -torch.ones_like(row)], dim=-1)
    return c2w[:, :3, 3], torch.einsum("vij,hwj->vhwi", c2w[:, :3, :3], in_camera)


def relative_rotations(
    rotation: Float[Tensor, "b v 3 3"], is_condition: Bool[Tensor, "b v"]
) -> Float[Tensor, "b v 3 3"]:
    """Rotations R_i R_0^T relative to the first view, in scenes with given views; other scenes keep the frame of the head.

    So angle 0 is the first given view, and the front of the head where no view is given.
    """
    relative = rotation @ rotation[:, :1].transpose(-1, -2)
    return torch.where(is_condition.any(1)[:, None, None, None], relative, rotation)
