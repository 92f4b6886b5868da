"""Renders meshes with Embree on the CPU, by casting one ray per pixel."""

from collections.abc import Iterator

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float32

from geometry.cameras import Cameras
from geometry.meshes import Mesh, VisibleSurface


class EmbreeCaster:
    """A mesh in Embree's bounding volume hierarchy, built once and rendered from any number of cameras.

    A view uses one core, and its bytes do not depend on the other views; several threads may use one caster.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        # Robust: no ray passes between two triangles that share an edge.
        self._scene = EmbreeScene(robust=True)
        TriangleMesh(self._scene, mesh.vertices, mesh.faces)
        self._vertices = np.ascontiguousarray(mesh.vertices.T)
        # Embree builds the hierarchy at the first query, which two threads must not make at once.
        self._scene.run(np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32))

    def cast(self, cameras: Cameras, resolution: int) -> Iterator[VisibleSurface]:
        """Yield the surface that each camera sees, one view at a time."""
        cameras = cameras.to("cpu")
        for view in range(len(cameras)):
            yield self._cast_view(cameras[view : view + 1], resolution)

    def meets(
        self, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether rays meet the mesh anywhere along their (positive) direction, in world space."""
        return self._scene.run(np.ascontiguousarray(origins), np.ascontiguousarray(directions)) >= 0

    def _cast_view(self, camera: Cameras, resolution: int) -> VisibleSurface:
        rows, columns = window = self._window(camera, resolution)
        directions = _directions(camera, resolution, rows, columns)
        shape = directions.shape[1:]
        directions = directions.reshape(3, -1).T
        origins = np.broadcast_to(camera.positions.float().numpy(), directions.shape)
        hits = self._scene.run(origins, directions, output=True)
        seen, u, v = hits["primID"] >= 0, hits["u"], hits["v"]
        face = np.full((resolution, resolution), -1, dtype=np.int32)
        face[window] = hits["primID"].reshape(shape)
        depth = np.zeros((resolution, resolution), dtype=np.float32)
        depth[window] = np.where(seen, hits["tfar"], 0).reshape(shape)
        barycentric = np.zeros((3, resolution, resolution), dtype=np.float32)
        for corner, weight in zip(barycentric, (seen - u - v, u, v), strict=True):
            corner[window] = weight.reshape(shape)
        return VisibleSurface(self.mesh, depth, face, barycentric, camera.view_rotation[0].float().numpy())

    def _window(self, camera: Cameras, resolution: int) -> tuple[slice, slice]:
        """Rows and columns outside of which no ray can meet the mesh."""
        projection = (camera.pixel_K(resolution)[0] @ camera.w2c[0, :3]).float().numpy()
        x, y, z = np.einsum("ij,jn->in", projection[:, :3], self._vertices) + projection[:, 3:]
        if z.min() <= 0:  # partly behind the camera, where a projection bounds nothing
            return slice(None), slice(None)
        # One pixel of slack: this only saves rays, and must not decide any.
        bounds = [((axis / z).min(), (axis / z).max()) for axis in (y, x)]
        rows, columns = (np.clip([low - 1, high + 2], 0, resolution).astype(int) for low, high in bounds)
        return slice(*rows), slice(*columns)


def _directions(camera: Cameras, resolution: int, rows: slice, columns: slice) -> Float32[np.ndarray, "3 h w"]:
    """World directions whose camera z is 1, which makes Embree's distance along them the z depth."""
    # The direction of a pixel is affine in its column and row, so an image of them is one sum of two of its edges.
    to_world = (camera.c2w[0, :3, :3].double() @ torch.linalg.inv(camera.K[0].double())).numpy()
    centres = (np.arange(resolution) + 0.5) / resolution
    top = to_world[:, 0, None] * centres[columns] + to_world[:, 2, None]
    side = to_world[:, 1, None] * centres[rows]
    return side.astype(np.float32)[:, :, None] + top.astype(np.float32)[:, None, :]
