"""Triangle meshes, the surfaces that cameras see of them, and their normals.

A normal map is in the camera's OpenGL axes unless it is stated otherwise (`Cameras.view_rotation`: x right, y up, z towards
the viewer), so a surface that faces the camera is light blue.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64, UInt8

from geometry.cameras import Cameras


def unit(vectors: Float[np.ndarray, "*n"], axis: int = -1) -> Float[np.ndarray, "*n"]:
    """Vectors scaled to unit length; the zero vector stays zero."""
    lengths = np.sqrt(np.square(vectors).sum(axis, keepdims=True))
    return vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in the world, counter-clockwise seen from outside."""

    vertices: Float32[np.ndarray, "n 3"]
    faces: Int32[np.ndarray, "m 3"]

    def __post_init__(self) -> None:
        # A renderer would read beyond its arrays at a wrong index.
        if not self.faces.size or self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise ValueError(
                f"a mesh of {len(self.vertices)} vertices and {len(self.faces)} faces: "
                "it takes at least one face, and faces that index its vertices"
            )

    @cached_property
    def _corners(self) -> Int64[np.ndarray, "3 m"]:
        """The vertex indices by corner, in the layout and type that numpy indexes fastest with."""
        return np.ascontiguousarray(self.faces.T, dtype=np.int64)

    @cached_property
    def _face_areas(self) -> Float32[np.ndarray, "m 3"]:
        """Outward normals of the faces; their lengths are twice the areas."""
        a, b, c = self.vertices[self._corners]
        return np.cross(b - a, c - a)

    @cached_property
    def face_normals(self) -> Float32[np.ndarray, "m 3"]:
        """Unit normals of the faces; zero where a face has no area."""
        return unit(self._face_areas)

    @cached_property
    def vertex_normals(self) -> Float32[np.ndarray, "n 3"]:
        """Unit normals of the vertices: the mean of the faces around each, weighted by area (as PyTorch3D's)."""
        corners = self._corners.reshape(-1)
        sums = [np.bincount(corners, np.tile(axis, 3), len(self.vertices)) for axis in self._face_areas.T]
        # Component by component in memory, the layout that interpolation gathers from fastest.
        return unit(np.stack(sums), axis=0).astype(np.float32).T


@dataclass(frozen=True, eq=False)
class VisibleSurface:
    """The points of a mesh that one camera sees through its pixel centres."""

    mesh: Mesh
    depth: Float32[np.ndarray, "h w"]
    """Distance along the optical axis (OpenCV z) in world units, 0 where nothing is seen."""
    face: Int32[np.ndarray, "h w"]
    """Index of the visible face, -1 where there is none."""
    barycentric: Float32[np.ndarray, "3 h w"]
    """Perspective-correct weights of the corners of the face; 0 where nothing is seen."""
    view_rotation: Float32[np.ndarray, "3 3"]
    """Rotation from the world to the camera's OpenGL axes, the frame of camera-space normals."""

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        return self.face >= 0

    def face_normals(self, space: Literal["camera", "world"] = "camera") -> Float32[np.ndarray, "h w 3"]:
        """Unit normals of the visible faces, in OpenGL camera axes or the world's; 0 where nothing is seen."""
        seen = np.flatnonzero(self.mask)
        return self._image(seen, self.mesh.face_normals.take(self.face.take(seen), axis=0).T, space)

    def smooth_normals(self, space: Literal["camera", "world"] = "camera") -> Float32[np.ndarray, "h w 3"]:
        """Interpolated unit vertex normals, in OpenGL camera axes or the world's; 0 where nothing is seen."""
        # Points lie along the last axis, where einsum runs ten times as fast; BLAS would be as fast, but its results
        # may depend on the number of threads.
        seen = np.flatnonzero(self.mask)
        corners = self.mesh._corners.take(self.face.take(seen), axis=1)
        weights = self.barycentric.reshape(3, -1).take(seen, axis=1)
        normals = np.einsum("cp,icp->ip", weights, self.mesh.vertex_normals.T.take(corners, axis=1))
        return self._image(seen, unit(normals, axis=0), space)

    def _image(
        self, seen: Int[np.ndarray, " p"], normals: Float32[np.ndarray, "3 p"], space: Literal["camera", "world"]
    ) -> Float32[np.ndarray, "h w 3"]:
        if space == "camera":
            normals = np.einsum("ij,jp->ip", self.view_rotation, normals)
        image = np.zeros((*self.face.shape, 3), dtype=np.float32)
        image.reshape(-1, 3)[seen] = normals.T
        return image


def look(
    mesh: Mesh, cameras: Cameras, resolution: int, backend: Literal["embree", "pytorch3d"] = "embree"
) -> Iterator[VisibleSurface]:
    """Yield the surface that each camera sees of a mesh in a square image, one view at a time to bound memory.

    To render one mesh several times, build the caster once: `EmbreeCaster(mesh).cast(cameras, resolution)`.
    """
    if backend == "embree":
        from geometry.embree import EmbreeCaster

        return EmbreeCaster(mesh).cast(cameras, resolution)
    if backend == "pytorch3d":
        from geometry.pytorch3d import PyTorch3DCaster

        return PyTorch3DCaster(mesh).cast(cameras, resolution)
    raise ValueError(f"unknown mesh backend {backend!r}: it is 'embree' or 'pytorch3d'")


def encode_normals(normals: Float[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 3"]:
    """Colours (n + 1) / 2 rounded to the nearest of 255 steps, halves up: background, the zero vector, is grey 128."""
    return np.floor(127.5 * normals + 128).astype(np.uint8)


def decode_normals(rgb: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Unit normals of an encoded picture, within 0.4 degrees of the original; grey background gives the zero vector."""
    vectors = rgb.astype(np.float32) / 127.5 - 1
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    # A unit vector has a component of at least 0.57, so nothing shorter than this was a normal.
    return np.where(lengths > 0.5, vectors / lengths, 0)
