"""Coloured points on the mesh of an identity, which splats and radiance fields start from."""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from scipy.spatial import KDTree

from exports.cameras import Points
from exports.pictures import cameras_of
from geometry.cameras import Cameras
from geometry.embree import EmbreeCaster
from geometry.meshes import Mesh
from manifests.draws import generator
from manifests.keep import KeptIdentity
from manifests.pictures import decode_picture
from manifests.ply import decode_mesh

POINTS = 20_000
GRAZING = 0.2
"""Cosine below which a view sees a surface too flatly: near an outline, pixels hold the background as well."""
LIFT = 1e-4
"""How far above the surface, in world units, a ray starts, so that it does not meet the face it leaves."""


def points_of(identity: KeptIdentity) -> Points | None:
    """Points spread evenly over the surface of an identity, each in the colour of the view that sees it most squarely.

    Rays through the mesh tell which views see a point. A point that none sees has the colour of the nearest seen one.
    Without a saved mesh there are no points.
    """
    if (ply := identity.mesh()) is None:
        return None
    mesh = Mesh(*decode_mesh(ply))
    a, b, c = mesh.vertices[mesh.faces.T]
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    draws = generator(identity.row["seed"], "points")
    face = draws.choice(len(areas), POINTS, p=areas / areas.sum(dtype=np.float64))
    # Uniform in a triangle: Turk 1990, "Generating random points in triangles".
    root, v = np.sqrt(draws.random(POINTS, np.float32)), draws.random(POINTS, np.float32)
    weights = np.stack([1 - root, root * (1 - v), root * v])[..., None]
    xyz = (weights * np.stack([a[face], b[face], c[face]])).sum(0).astype(np.float32)
    return Points(xyz, _colours(identity, mesh, xyz, mesh.face_normals[face]))


def _colours(
    identity: KeptIdentity, mesh: Mesh, xyz: Float32[np.ndarray, "n 3"], normals: Float32[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "n 3"]:
    """The colour of each point in the view that sees it most squarely; of the nearest seen point where none sees it."""
    resolution, cameras = identity.dataset.plan.resolution, cameras_of(identity)
    pixels = cameras.project(torch.from_numpy(xyz), resolution)[..., :2].numpy()
    in_frame = np.logical_and(pixels >= 0, pixels < resolution).all(axis=-1)
    best = _best_views(mesh, xyz, normals, cameras, np.asarray(in_frame))
    colours = np.zeros((len(xyz), 3), np.uint8)
    for view, picture in enumerate(next(identity.members("rgb"))):
        own = best == view
        x, y = pixels[view, own].astype(int).T
        colours[own] = decode_picture(picture)[y, x]
    seen = best >= 0
    if seen.any():
        colours[~seen] = colours[seen][KDTree(xyz[seen]).query(xyz[~seen])[1]]
    return colours


def _best_views(
    mesh: Mesh,
    xyz: Float32[np.ndarray, "n 3"],
    normals: Float32[np.ndarray, "n 3"],
    cameras: Cameras,
    in_frame: Bool[np.ndarray, "v n"],
) -> Int[np.ndarray, " n"]:
    """For each point the view that it faces most squarely of those that see it, -1 if none does."""
    towards = cameras.positions.numpy()[:, None] - xyz
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    facing = np.where(in_frame, np.einsum("vni,ni->vn", towards, normals), -1)
    caster = EmbreeCaster(mesh)
    best, rest = np.full(len(xyz), -1), np.arange(len(xyz))
    for ranked in np.argsort(-facing, axis=0):
        rest = rest[facing[ranked[rest], rest] > GRAZING]
        if not len(rest):
            break
        covered = caster.meets(xyz[rest] + LIFT * normals[rest], towards[ranked[rest], rest])
        best[rest[~covered]] = ranked[rest[~covered]]
        rest = rest[covered]
    return best
