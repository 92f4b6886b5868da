"""Looks at meshes through whichever backend is asked for."""

from collections.abc import Iterator
from typing import Literal

from geometry.cameras import Cameras
from geometry.meshes import Mesh, Surface


def look(
    mesh: Mesh, cameras: Cameras, resolution: int, backend: Literal["embree", "pytorch3d"] = "embree"
) -> Iterator[Surface]:
    """What each camera sees of a mesh in a square image, one view at a time so that memory stays that of one view.

    A caster that is to be used again is built once from its class: `EmbreeCaster(mesh).cast(cameras, resolution)`.
    """
    if backend == "embree":
        from geometry.embree import EmbreeCaster

        return EmbreeCaster(mesh).cast(cameras, resolution)
    if backend == "pytorch3d":
        from geometry.pytorch3d import PyTorch3DCaster

        return PyTorch3DCaster(mesh).cast(cameras, resolution)
    raise ValueError(f"unknown mesh backend {backend!r}: it is 'embree' or 'pytorch3d'")
