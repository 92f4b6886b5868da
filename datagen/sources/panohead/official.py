"""Conventions of the official scripts: seeds, the conditioning camera, and the grids they extract shapes from."""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.cameras import Cameras, eg3d_labels, intrinsics, panohead_look_at
from manifests.errors import UserError

ISO_LEVEL = 10.0
"""The raw density at which the official scripts extract the surface."""

MAX_SEED = (1 << 32) - 1
"""The largest seed of numpy's RandomState, which the official scripts draw latents with."""


def latent(seed: int, z_dim: int) -> Float[Tensor, "1 z"]:
    """The latent of a seed, in double precision as the official scripts draw it."""
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed is {seed}; numpy's RandomState takes 0 to {MAX_SEED}")
    return torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim))


def frontal_label() -> Float[Tensor, "1 25"]:
    """The camera that identities are conditioned on: in front, at the usual radius and focal length."""
    front = torch.full((1,), math.pi / 2)
    return eg3d_labels(Cameras(panohead_look_at(front, front, torch.zeros(3)), intrinsics()))


def grid_points(n: int, length: float = 1.0) -> Float[Tensor, "m 3"]:
    """Points of the official n^3 grid over a cube, z fastest, with its shear.

    The official code divides indices as floats: y and x carry a fraction of a voxel that grows with the faster indices,
    and single precision rounds the index of a large grid. Source: PanoHead, gen_samples.py, create_samples.
    """
    index = torch.arange(n**3)
    z = (index % n).float()
    y = (index.float() / n) % n
    x = ((index.float() / n) / n) % n
    return torch.stack([x, y, z], dim=1) * (length / (n - 1)) - length / 2


def shape_volume(
    sigma: Float[Tensor, " m"], script: Literal["gen_samples", "gen_videos"]
) -> Float[np.ndarray, "n n n"]:
    """Raw densities at `grid_points` as the volume [flipped x, y, z] an official script extracts, its border emptied.

    gen_samples sets 30/256 of the cube to -1000 on every side; gen_videos sets it to 0, and 38/256 at the top.
    """
    n = round(len(sigma) ** (1 / 3))
    volume = sigma.reshape(n, n, n).cpu().numpy()[::-1].copy()
    pad, top, value = 30 * n // 256, 30 * n // 256, -1000.0
    if script == "gen_videos":
        top, value = 38 * n // 256, 0.0
    inside = np.zeros(volume.shape, bool)
    inside[pad : n - pad, pad : n - top, pad : n - pad] = True
    return np.where(inside, volume, np.float32(value))


def vertices_to_world(vertices: Float[np.ndarray, "v 3"], n: int, length: float = 1.0) -> Float[np.ndarray, "v 3"]:
    """World positions of an official .ply's vertices, which count voxels along z, y and the flipped x."""
    z, y, x = (vertices * (length / (n - 1)) - length / 2).T
    return np.stack([-x, y, z], axis=1)
