"""A coloured surface from views: what their silhouettes leave, with the relief of their normals."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torch.nn import functional

from geometry.cameras import Cameras
from geometry.meshes import Mesh
from infer.outputs.relief import relief
from infer.outputs.seen import see
from infer.outputs.silhouettes import silhouettes
from infer.turn import Turn
from manifests.errors import UserError

GRID = 128
BOX = 0.36
"""Half the side of the cube that is looked at: a little more of the head than the cameras of an orbit see."""
SMOOTH = 1.0
"""Pixels by which contours are smoothed: the staircase of one would be a terrace around the head."""
SQUARELY = 8
"""The power of the cosine by which the view that faces a vertex most squarely decides its colour."""


@dataclass(frozen=True, eq=False)
class Body:
    """The surface of a head in the world of the cameras (y up, the face to +z), and its colours."""

    mesh: Mesh
    colours: UInt8[np.ndarray, "n 3"]

    def ply(self) -> bytes:
        """Binary PLY, coloured at the vertices."""
        import trimesh
        from trimesh.exchange.ply import export_ply

        mesh = trimesh.Trimesh(self.mesh.vertices, self.mesh.faces, vertex_colors=self.colours, process=False)
        return export_ply(mesh)


def body(turn: Turn, grid: int = GRID) -> Body:
    """The head that the views show.

    Raises:
        ValueError: a view shows no head, or the silhouettes of the views have nothing in common.
    """
    masks, cameras = silhouettes(turn), turn.cameras
    mesh = surface(masks, cameras, grid)
    if turn.normal is not None:
        mesh = relief(mesh, turn.normal, cameras)
    return Body(mesh, _colours(mesh, turn, masks))


def surface(masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int = GRID) -> Mesh:
    """The largest part of the visual hull, between the corners of a grid; cut where no view looks.

    Beyond its frame a mask goes on as it is at the frame.

    Raises:
        ValueError: the masks have nothing in common.
    Source: Laurentini 1994, the visual hull; Lewiner et al. 2003, marching cubes.
    """
    from skimage.measure import label, marching_cubes

    depth = _depths(masks, cameras, grid)
    parts = np.asarray(label(depth > 0, connectivity=1))
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes):
        raise UserError("the silhouettes of the views have nothing in common: they are not of one head")
    outside = -BOX / grid
    depth[(parts > 0) & (parts != 1 + sizes.argmax())] = outside
    vertices, faces, _, _ = marching_cubes(np.pad(depth, 1, constant_values=outside), 0, gradient_direction="ascent")
    return Mesh(((2 * (vertices - 1) / (grid - 1) - 1) * BOX).astype(np.float32), faces.astype(np.int32))


def _depths(masks: Bool[Tensor, "v h w"], cameras: Cameras, grid: int) -> Float32[np.ndarray, "g g g"]:
    """How deep inside the hull the corners (x, y, z) of a grid over the box lie, in world units; negative outside."""
    resolution = masks.shape[-1]
    inside = torch.from_numpy(np.stack([_signed_distance(mask) for mask in masks.numpy()]))[:, None]
    ticks = torch.linspace(-BOX, BOX, grid)
    plane = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), dim=-1).reshape(-1, 2)
    slabs = []
    for x in ticks:
        seen = cameras.project(torch.cat([x.expand(len(plane), 1), plane], dim=-1), resolution)
        at = 2 * seen[..., :2] / resolution - 1
        pixel = seen[..., 2] / (resolution * cameras.K[:, :1, 0])
        depth = functional.grid_sample(inside, at[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0]
        frame = (1 - at.abs()).amin(-1) * resolution / 2
        slabs.append(torch.minimum((depth * pixel).amin(0), (frame * pixel).amax(0)).reshape(grid, grid))
    return torch.stack(slabs).numpy()


def _signed_distance(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Pixels to the contour of a mask, positive inside; the border of the picture is no contour."""
    inner, outer = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (mask, ~mask)
    )
    return cv2.GaussianBlur(np.where(mask, inner - 0.5, 0.5 - outer), (0, 0), SMOOTH)


def _colours(mesh: Mesh, turn: Turn, masks: Bool[Tensor, "v h w"]) -> UInt8[np.ndarray, "n 3"]:
    """Of each vertex in the views that see it, mostly of the one that faces it; unseen ones are as their neighbours."""
    from scipy.spatial import KDTree

    seen = see(mesh, turn.cameras, turn.resolution)
    total, weights = np.zeros_like(mesh.vertices), np.zeros((len(mesh.vertices), 1), np.float32)
    for view, facing in enumerate(seen.facing):
        # Halfway between pixels of the head and of the background lies a colour that is neither's.
        own = seen.sample(view, torch.cat([turn.rgb[view].cpu(), masks[view : view + 1]]))
        weight = np.where(own[:, 3] > 0.99, facing**SQUARELY, 0)[:, None]
        total, weights = total + weight * own[:, :3], weights + weight
    known = np.flatnonzero(weights)
    if not len(known):
        return np.full(total.shape, 128, np.uint8)
    nearest = known[KDTree(mesh.vertices[known]).query(mesh.vertices)[1]]
    return ((total[nearest] / weights[nearest]).clip(-1, 1) * 127.5 + 128).astype(np.uint8)
