"""Coloured points on the mesh of an identity, which splats and radiance fields start from."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from datagen.export.pictures import cameras_of, decode
from geometry.cameras import Cameras
from geometry.meshes import Mesh
from manifests.draws import generator
from manifests.keep import KeptIdentity

POINTS = 20_000


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a surface and their colours."""

    xyz: Float32[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"]

    def ply(self, turn: Float[torch.Tensor, "3 3"]) -> bytes:
        """Binary PLY of the points in another world."""
        table = np.empty(
            len(self.xyz), [*((axis, "<f4") for axis in "xyz"), *((c, "u1") for c in ("red", "green", "blue"))]
        )
        for axis, values in zip("xyz", (self.xyz @ turn.numpy().T).T, strict=True):
            table[axis] = values
        for name, values in zip(("red", "green", "blue"), self.rgb.T, strict=True):
            table[name] = values
        fields = "".join(f"property {'float' if n in 'xyz' else 'uchar'} {n}\n" for n in table.dtype.names or ())
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{fields}end_header\n"
        return header.encode() + table.tobytes()


def read_mesh(ply: bytes) -> Mesh:
    import trimesh

    loaded = trimesh.load_mesh(io.BytesIO(ply), file_type="ply", process=False)
    return Mesh(np.asarray(loaded.vertices, np.float32), np.asarray(loaded.faces, np.int32))


def points_of(identity: KeptIdentity, ply: bytes) -> Points:
    """Points spread evenly over the surface, each in the colour of the view that faces it most squarely.

    Nothing checks that this view is not covered there by another part of the head.
    """
    mesh, cameras = read_mesh(ply), cameras_of(identity)
    a, b, c = mesh.vertices[mesh.faces.T]
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    draws = generator(identity.row["seed"], "points")
    face = draws.choice(len(areas), POINTS, p=areas / areas.sum(dtype=np.float64))
    # Uniform in a triangle: Turk 1990, "Generating random points in triangles".
    root, v = np.sqrt(draws.random(POINTS, np.float32)), draws.random(POINTS, np.float32)
    weights = np.stack([1 - root, root * (1 - v), root * v])[..., None]
    xyz = (weights * np.stack([a[face], b[face], c[face]])).sum(0).astype(np.float32)
    return Points(xyz, _colours(identity, cameras, xyz, mesh.face_normals[face]))


def _colours(
    identity: KeptIdentity, cameras: Cameras, xyz: Float32[np.ndarray, "n 3"], normals: Float32[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "n 3"]:
    resolution = identity.dataset.plan.resolution
    towards = cameras.positions.numpy()[:, None] - xyz
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    facing = np.einsum("vni,ni->vn", towards, normals).argmax(0)
    colours = np.empty((len(xyz), 3), np.uint8)
    for view, picture in enumerate(identity.members("rgb")):
        if not len(own := np.flatnonzero(facing == view)):
            continue
        pixels = cameras[view : view + 1].project(torch.from_numpy(xyz[own]), resolution)[0, :, :2].numpy()
        x, y = pixels.astype(int).clip(0, resolution - 1).T
        colours[own] = decode(picture)[y, x]
    return colours
