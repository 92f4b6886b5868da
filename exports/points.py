"""Samples coloured points on the mesh of an identity, to initialise splats and radiance fields."""

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
from manifests.pictures import decode_picture
from manifests.ply import decode_mesh
from manifests.subset import KeptIdentity

POINTS = 20_000
GRAZING = 0.2
"""Smallest cosine between a ray and the normal for a view to give a colour: near outlines pixels hold background as well."""
LIFT = 1e-4
"""Distance from the surface at which a ray starts, in world units, so that it does not meet the face it leaves."""


def points_of(identity: KeptIdentity) -> Points | None:
    """Points spread evenly over the surface of an identity, each with its colour in the view that it faces most.

    Rays decide which views see a point. A point that no view sees has the colour of the nearest visible point.
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
    """The colour of each point in the view that it faces most; of the nearest visible point where no view sees it."""
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
    """For each point, the view that it faces most of those that see it, or -1."""
    towards = cameras.positions.numpy()[:, None] - xyz
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    facing = np.where(in_frame, np.einsum("vni,ni->vn", towards, normals), -1)
    caster = EmbreeCaster(mesh)
    best, remaining = np.full(len(xyz), -1), np.arange(len(xyz))
    for ranked in np.argsort(-facing, axis=0):
        remaining = remaining[facing[ranked[remaining], remaining] > GRAZING]
        if not len(remaining):
            break
        covered = caster.meets(xyz[remaining] + LIFT * normals[remaining], towards[ranked[remaining], remaining])
        best[remaining[~covered]] = ranked[remaining[~covered]]
        remaining = remaining[covered]
    return best
