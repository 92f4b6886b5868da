"""Writes the outputs of views to a folder: pictures, films, a page, cameras for tools of reconstruction, and surfaces."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from exports.cameras import Points, colmap_files, nerfstudio_files
from infer.config import DEFAULT, OUTPUTS
from infer.outputs.pictures import file_names, gif, mp4, png_files, sheet, viewer
from infer.outputs.splat import check_splat, splats
from infer.outputs.surface import ColouredMesh, coloured_mesh
from infer.views import HeadViews
from jobs.progress import step
from manifests.errors import UserError
from manifests.pictures import encode_picture
from manifests.storage import Storage

POINTS = 20_000
"""Most points of a cloud: enough to initialise splats or bundle adjustment, and below 1 MB."""


SURFACE_OUTPUTS = ("nerfstudio", "colmap", "mesh", "splat")
"""Outputs that use a surface."""

RECORD = "turn.json"
"""The file that lists the views, and the files of the folder that the next run may replace."""


def check_outputs(folder: str, which: Sequence[str], fps: float = 24.0) -> None:
    """Check that outputs can be written to a folder, before anything is sampled.

    Raises:
        UserError: an output is unknown or not possible on this machine, or the folder holds files that spinset did not write.
    """
    if unknown := [name for name in which if name not in OUTPUTS]:
        raise UserError(f"there is no output {unknown[0]!r}; there are {', '.join(OUTPUTS)}")
    if not 1 <= fps <= 50:
        raise UserError(f"{fps:g} frames per second; it must be from 1 to 50, which is as fast as a GIF can be")
    if "splat" in which:
        check_splat()
    _earlier_files(Storage(folder))


def write_outputs(
    views: HeadViews,
    folder: str,
    which: Sequence[str] = DEFAULT,
    fps: float = 24.0,
    extra: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Write outputs to a folder, in the place of those of an earlier run; returns notes on what could not be made.

    `extra` are further files by name, which belong to these views and are replaced and removed with them. All files are made
    before the first is written, and each appears under its name when it is whole.

    Raises:
        UserError: as `check_outputs`, or a file exists that spinset did not write.
    """
    check_outputs(folder, which, fps)
    surface_outputs = [name for name in which if name in SURFACE_OUTPUTS]
    mesh, notes = None, []
    with step(f"meshing for {', '.join(surface_outputs)}") if surface_outputs else nullcontext():
        try:
            mesh = coloured_mesh(views) if surface_outputs else None
        except ValueError as error:
            without = {"mesh": "no mesh", "splat": "no splat"}
            notes = [f"{without.get(name, f'{name} without points')}: {error}" for name in surface_outputs]
    # Camera files refer to the pictures.
    outputs = {"images", *which} if {"nerfstudio", "colmap"} & set(which) else set(which)
    files = dict(extra or {})
    for output in sorted(outputs):
        with step(f"making {output}"):
            files |= _files(views, output, mesh, fps, Path(folder).name)
    storage = Storage(folder)
    earlier = _earlier_files(storage)
    if foreign := sorted(name for name in files if name not in earlier and storage.exists(name)):
        raise UserError(f"{folder} already contains {foreign[0]}, which spinset did not write; choose another folder")
    # The record is written first: every file that it names may be replaced, even if this run is interrupted.
    storage.write(RECORD, _record(views, sorted(earlier | set(files))))
    for name in earlier - set(files):
        if storage.exists(name):
            storage.remove(name)
    for name, data in files.items():
        storage.write(name, data)
    storage.write(RECORD, _record(views, sorted(files)))
    return notes


def _files(
    views: HeadViews, output: str, mesh: ColouredMesh | None, fps: float, title: str
) -> Iterator[tuple[str, bytes]]:
    match output:
        case "images":
            yield from png_files(views)
        case "sheet":
            yield "sheet.png", encode_picture(sheet(views))
        case "gif":
            yield "turntable.gif", gif(views, fps)
        case "mp4":
            yield "turntable.mp4", mp4(views, fps)
        case "viewer":
            yield "viewer.html", viewer(views, title).encode()
        case "nerfstudio":
            yield from nerfstudio(views, mesh)
        case "colmap":
            yield from colmap(views, mesh)
        case "mesh" if mesh is not None:
            yield "mesh.ply", mesh.ply()
        case "splat" if mesh is not None:
            yield "splat.ply", splats(views, mesh).ply()


def _points(mesh: ColouredMesh | None) -> Points | None:
    """Every n-th vertex and its colour: marching cubes orders vertices by place, so these cover the whole head."""
    if mesh is None:
        return None
    every = slice(None, None, -(-len(mesh.colours) // POINTS))
    return Points(mesh.mesh.vertices[every], mesh.colours[every])


def colmap(views: HeadViews, mesh: ColouredMesh | None) -> Iterator[tuple[str, bytes]]:
    """sparse/0 for images/."""
    return colmap_files(views.cameras, views.resolution, file_names(views), _points(mesh))


def nerfstudio(views: HeadViews, mesh: ColouredMesh | None) -> Iterator[tuple[str, bytes]]:
    """transforms.json and sparse_pc.ply for images/.

    The pictures are over white, which methods that render a background must be set to.
    """
    frames = [{"file_path": f"images/{name}"} for name in file_names(views)]
    return nerfstudio_files(views.cameras, views.resolution, frames, _points(mesh))


def _earlier_files(storage: Storage) -> set[str]:
    """The files that an earlier run wrote here.

    Raises:
        UserError: the folder holds other files.
    """
    if storage.exists(RECORD):
        try:
            return set(json.loads(storage.read(RECORD))["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{storage.url} already contains a {RECORD} that spinset did not write; choose another folder"
            ) from error
    if storage.fs.isfile(storage.root):
        raise UserError(f"{storage.url} is a file; choose a folder that is empty or does not exist")
    if storage.fs.isdir(storage.root) and storage.fs.ls(storage.root, detail=False):
        raise UserError(f"{storage.url} contains other files; choose a folder that is empty or does not exist")
    return set()


def _record(views: HeadViews, files: list[str]) -> bytes:
    rows = zip(views.azimuth.tolist(), views.elevation.tolist(), views.is_condition.tolist(), strict=True)
    fields = {
        "resolution": views.resolution,
        "views": [{"azimuth": a, "elevation": e, "given": given} for a, e, given in rows],
        "files": files,
    }
    return (json.dumps(fields, indent=1) + "\n").encode()
