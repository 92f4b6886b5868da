"""Moves the vertices of a mesh so that its surface turns as the normal maps of the views say."""

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from geometry.cameras import Cameras
from geometry.meshes import Mesh, unit
from infer.outputs.seen import see

ROUNDS = 2
"""How often normals are read off at where the vertices have gone."""
STIFFNESS = 0.5
"""How hard vertices stay where they are, of how hard edges turn: normals shape what is a few edges wide and no more.

They say nothing of where the surface is, so what is wider would drift off with their errors.
"""
UNSEEN = 0.1
"""How hard edges turn towards the mesh's own normals, where no view sees them."""
SQUARELY = 4
"""The power of the cosine by which views that face a vertex count more."""


def relief(mesh: Mesh, normals: Float32[Tensor, "v 3 h w"], cameras: Cameras) -> Mesh:
    """The mesh with the detail of normal maps (camera space, within [-1, 1], grey where there is no head).

    Vertices go along their normals such that edges become square to the normals at their ends, by least squares.
    Source: Nehab et al. 2005, "Efficiently combining positions and normals", with one unknown per vertex.
    """
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import cg

    i, j = _edges(mesh.faces)
    for _ in range(ROUNDS):
        wanted, known = _wanted(mesh, normals, cameras)
        along, ways = mesh.vertices[i] - mesh.vertices[j], mesh.vertex_normals
        length = np.linalg.norm(along, axis=1)
        # An angle and not a height is what is wrong with an edge; the shortest would have any.
        square = unit(wanted[i] + wanted[j]) / np.maximum(length, 0.1 * length.mean())[:, None]
        weight = np.where(known[i] & known[j], 1, UNSEEN)
        rises = np.concatenate([(square * ways[i]).sum(1), -(square * ways[j]).sum(1)])
        rows = np.tile(np.arange(len(i)), 2)
        slope = coo_array((rises, (rows, np.concatenate([i, j]))), (len(i), len(ways))).tocsr()
        stay = diags_array(np.full(len(ways), (STIFFNESS / length.mean()) ** 2))
        system = slope.T @ diags_array(weight) @ slope + stay
        asked = -(slope.T @ (weight * (square * along).sum(1)))
        moved, info = cg(system, asked, rtol=1e-3, maxiter=1000, M=diags_array(1 / system.diagonal()))
        if info != 0:
            raise ValueError(f"the least squares of the normals' relief did not converge (code {info})")
        mesh = Mesh((mesh.vertices + moved[:, None] * ways).astype(np.float32), mesh.faces)
    return mesh


def _wanted(
    mesh: Mesh, normals: Float32[Tensor, "v 3 h w"], cameras: Cameras
) -> tuple[Float32[np.ndarray, "n 3"], np.ndarray]:
    """World normals that the views give each vertex, and which vertices they give one to; else the mesh's own."""
    seen = see(mesh, cameras, normals.shape[-1])
    total = np.zeros_like(mesh.vertices)
    for view, facing in enumerate(seen.facing):
        own = seen.sample(view, normals[view].cpu())
        weight = np.where(np.linalg.norm(own, axis=1) > 0.5, facing**SQUARELY, 0)
        total += weight[:, None] * (unit(own) @ cameras.view_rotation[view].numpy())
    known = np.linalg.norm(total, axis=1) > 0
    return np.where(known[:, None], unit(total), mesh.vertex_normals), known


def _edges(faces: np.ndarray) -> Int64[np.ndarray, "2 e"]:
    """The vertices at both ends of each edge."""
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64), axis=1)
    edges = np.unique(pairs[:, 0] << 32 | pairs[:, 1])
    return np.stack([edges >> 32, edges & 0xFFFFFFFF])
