"""PLY files are read back by trimesh, and by this package, as they were written."""

import io

import numpy as np
import trimesh

from manifests.ply import decode_mesh, encode_coloured_points, encode_mesh

XYZ = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
RGB = np.random.default_rng(1).integers(0, 256, (5, 3), np.uint8)
FACES = np.array([[0, 1, 2], [2, 3, 4]], np.int32)


def test_points_keep_positions_and_colours():
    cloud = trimesh.load(io.BytesIO(encode_coloured_points(XYZ, RGB)), file_type="ply")
    np.testing.assert_array_equal(np.asarray(cloud.vertices, np.float32), XYZ)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], RGB)


def test_meshes_keep_vertices_faces_and_colours():
    data = encode_mesh(XYZ, FACES, RGB)
    vertices, faces = decode_mesh(data)
    np.testing.assert_array_equal(vertices, XYZ)
    np.testing.assert_array_equal(faces, FACES)
    mesh = trimesh.load_mesh(io.BytesIO(data), file_type="ply", process=False)
    np.testing.assert_array_equal(mesh.visual.vertex_colors[:, :3], RGB)
