"""Which points of a mesh each view sees, how squarely, and what it shows there."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from geometry.cameras import Cameras
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh, unit

FACING = 0.2
"""Cosine between a surface and the direction of a camera below which its picture is too slanted to be believed."""
SLACK = 0.02
"""How far behind what a view sees, in world units, a vertex may lie and still be taken for seen."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The vertices of a mesh in views."""

    facing: Float32[np.ndarray, "v n"]
    """Cosine between each vertex's normal and the direction of the camera; 0 where it is not seen."""
    at: Float32[Tensor, "v n 2"]
    """Where it is in the picture, which reaches from -1 to 1."""

    def sample(self, view: int, picture: Float[Tensor, "c h w"]) -> Float32[np.ndarray, "n c"]:
        """What the picture of a view shows at each vertex."""
        values = functional.grid_sample(
            picture[None].float(), self.at[view][None, :, None], padding_mode="border", align_corners=False
        )
        return values[0, :, :, 0].T.numpy()


def see(mesh: Mesh, cameras: Cameras, resolution: int) -> Seen:
    """Look at a mesh from cameras on the CPU; a vertex is seen where no surface lies before it in its pixel."""
    pixels = cameras.project(torch.from_numpy(np.ascontiguousarray(mesh.vertices)), resolution)
    facing = np.zeros(pixels.shape[:2], np.float32)
    for view, surface in enumerate(EmbreeCaster(mesh).cast(cameras, resolution)):
        x, y, depth = pixels[view].numpy().T
        inside = np.flatnonzero((x >= 0) & (x < resolution) & (y >= 0) & (y < resolution))
        before = surface.depth[y[inside].astype(int), x[inside].astype(int)]
        seen = inside[(before > 0) & (depth[inside] < before + SLACK)]
        ways = unit(cameras.positions[view].numpy() - mesh.vertices[seen])
        cosine = np.einsum("ni,ni->n", ways, mesh.vertex_normals[seen])
        facing[view, seen] = np.where(cosine > FACING, cosine, 0)
    return Seen(facing, 2 * pixels[..., :2] / resolution - 1)
