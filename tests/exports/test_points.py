"""Points take the colours of views that see them."""

import numpy as np
import torch
import trimesh

from exports.points import _best_views
from geometry.cameras import orbit
from geometry.meshes import Mesh


def test_a_covered_surface_is_not_coloured_by_what_covers_it():
    """Two plates face the same camera, the first covers the second; a camera from the side sees only the second."""
    plates = [
        trimesh.creation.box((0.2, 0.2, 0.01), trimesh.transformations.translation_matrix([0, 0, z]))
        for z in (0.2, 0.0)
    ]
    both = trimesh.util.concatenate(plates)
    mesh = Mesh(both.vertices.astype(np.float32), both.faces.astype(np.int32))
    points = np.array([[0, 0, 0.205], [0.05, 0.02, 0.005]], np.float32)
    normals = np.array([[0, 0, 1], [0, 0, 1]], np.float32)
    cameras = orbit(np.array([0.0, 65.0, 180.0]), np.zeros(3))
    assert _best_views(mesh, points, normals, cameras, np.ones((3, 2), bool)).tolist() == [0, 1]
    assert _best_views(mesh, points, normals, cameras[[0, 2]], np.ones((2, 2), bool)).tolist() == [0, -1]
    assert _best_views(mesh, points, normals, cameras, np.array([[0, 1], [1, 1], [1, 1]], bool)).tolist() == [1, 1]


def test_points_of_a_convex_surface_are_seen_by_the_view_they_face():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.3)
    mesh = Mesh(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32))
    normals = (mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)).astype(np.float32)
    cameras = orbit(np.array([0.0, 120.0, 240.0]), np.zeros(3))
    best = _best_views(mesh, mesh.vertices, normals, cameras, np.ones((3, len(normals)), bool))
    towards = torch.nn.functional.normalize(cameras.positions, dim=-1).numpy() @ normals.T
    # Not near an outline, nor where two views are about as good.
    clear = (towards.max(0) > 0.4) & (np.diff(np.sort(towards, axis=0)[1:], axis=0)[0] > 0.2)
    assert clear.sum() > 500
    assert (best == towards.argmax(0))[clear].all() and (best[normals[:, 1] > 0.99] == -1).all()
