"""Outputs for tools of 3D reconstruction: cameras as nerfstudio and COLMAP read them, with points of the head."""

from collections.abc import Iterator

from exports.cameras import Points, colmap_files, nerfstudio_files
from infer.outputs.pictures import file_names
from infer.outputs.surface import ColouredMesh
from infer.views import HeadViews

POINTS = 20_000
"""Most points of a cloud: enough to initialise splats or bundle adjustment, and below 1 MB."""


def nerfstudio(views: HeadViews, mesh: ColouredMesh | None) -> Iterator[tuple[str, bytes]]:
    """transforms.json and sparse_pc.ply for images/.

    The pictures are over white, which methods that render a background must be set to.
    """
    frames = [{"file_path": f"images/{name}"} for name in file_names(views)]
    return nerfstudio_files(views.cameras, views.resolution, frames, _points(mesh))


def colmap(views: HeadViews, mesh: ColouredMesh | None) -> Iterator[tuple[str, bytes]]:
    """sparse/0 for images/."""
    return colmap_files(views.cameras, views.resolution, file_names(views), _points(mesh))


def _points(mesh: ColouredMesh | None) -> Points | None:
    """Every n-th vertex and its colour: marching cubes orders vertices by place, so these cover the whole head."""
    if mesh is None:
        return None
    every = slice(None, None, -(-len(mesh.colours) // POINTS))
    return Points(mesh.mesh.vertices[every], mesh.colours[every])
