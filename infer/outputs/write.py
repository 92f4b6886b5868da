"""What is written of a turn: a folder of pictures, films, cameras, shapes and a page to look at."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from infer.config import DEFAULT, OUTPUTS
from infer.outputs.camera_files import colmap, nerfstudio
from infer.outputs.mesh import Body, body
from infer.outputs.pictures import pictures, png
from infer.outputs.sheet import sheet
from infer.outputs.splat import check_splat, splats
from infer.outputs.video import gif, mp4
from infer.outputs.viewer import viewer
from infer.turn import Turn
from jobs.progress import step
from manifests.errors import UserError
from manifests.storage import Storage

SHAPES = ("nerfstudio", "colmap", "mesh", "splat")
"""Outputs that start from a surface."""
RECORD = "turn.json"
"""Which files of the folder are of the turn, so that the next one may replace them; and what the views are."""


def check(folder: str, which: Sequence[str], fps: float = 24.0) -> None:
    """Raise ValueError in one line if `write` could not write so, whatever the turn; worth asking before one is made."""
    if unknown := [name for name in which if name not in OUTPUTS]:
        raise UserError(f"there is no output {unknown[0]!r}; there are {', '.join(OUTPUTS)}")
    if not 1 <= fps <= 50:
        raise UserError(f"{fps:g} frames per second; it must be from 1 to 50, which is as fast as a GIF can be")
    if "splat" in which:
        check_splat()
    _earlier(Storage(folder))


def write(
    turn: Turn, folder: str, which: Sequence[str] = DEFAULT, fps: float = 24.0, extra: Mapping[str, bytes] | None = None
) -> list[str]:
    """Write outputs of a turn to a folder, in place of an earlier turn's; returns what could not be made, and why.

    `extra` are further files that belong to the turn, by name; they are replaced and removed with it.

    Everything is made before anything is written, and each file appears under its name when it is whole.

    Raises:
        ValueError: what `check` finds, or the folder holds files that are not of an earlier turn.
    """
    check(folder, which, fps)
    shape_outputs = [name for name in which if name in SHAPES]
    with step(f"meshing for {', '.join(shape_outputs)}") if shape_outputs else nullcontext():
        shape, notes = _shape(turn, shape_outputs)
    # Cameras are of pictures, which lie beside them.
    outputs = {"images", *which} if {"nerfstudio", "colmap"} & set(which) else set(which)
    files = dict(extra or {})
    for output in sorted(outputs):
        with step(f"making {output}"):
            files |= _files(turn, output, shape, fps, Path(folder).name)
    storage = Storage(folder)
    earlier = _earlier(storage)
    if strangers := sorted(name for name in files if name not in earlier and storage.exists(name)):
        raise UserError(f"{folder} holds a {strangers[0]} of somebody else; choose another folder")
    # The record goes first: whatever it names may be replaced, even if writing is cut here.
    storage.write(RECORD, _record(turn, sorted(earlier | set(files))))
    for name in earlier - set(files):
        if storage.exists(name):
            storage.remove(name)
    for name, data in files.items():
        storage.write(name, data)
    storage.write(RECORD, _record(turn, sorted(files)))
    return notes


def _shape(turn: Turn, wanted: Sequence[str]) -> tuple[Body | None, list[str]]:
    """The surface that some outputs start from, or why there is none."""
    if not wanted:
        return None, []
    try:
        return body(turn), []
    except ValueError as error:
        without = {"mesh": "no mesh", "splat": "no splat"}
        return None, [f"{without.get(name, f'{name} without points')}: {error}" for name in wanted]


def _files(turn: Turn, output: str, shape: Body | None, fps: float, title: str) -> Iterator[tuple[str, bytes]]:
    match output:
        case "images":
            yield from pictures(turn)
        case "sheet":
            yield "sheet.png", png(sheet(turn))
        case "gif":
            yield "turntable.gif", gif(turn, fps)
        case "mp4":
            yield "turntable.mp4", mp4(turn, fps)
        case "viewer":
            yield "viewer.html", viewer(turn, title).encode()
        case "nerfstudio":
            yield from nerfstudio(turn, shape)
        case "colmap":
            yield from colmap(turn, shape)
        case "mesh" if shape is not None:
            yield "mesh.ply", shape.ply()
        case "splat" if shape is not None:
            yield "splat.ply", splats(turn, shape).ply()


def _earlier(storage: Storage) -> set[str]:
    """The files that an earlier turn left here.

    Raises:
        ValueError: there are files, and no record of a turn.
    """
    if storage.exists(RECORD):
        try:
            return set(json.loads(storage.read(RECORD))["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{storage.url} holds a {RECORD} of somebody else; choose another folder") from error
    if storage.fs.isfile(storage.root):
        raise UserError(f"{storage.url} is a file; choose a folder that is empty or not there")
    if storage.fs.isdir(storage.root) and storage.fs.ls(storage.root, detail=False):
        raise UserError(f"{storage.url} holds something else; choose a folder that is empty or not there")
    return set()


def _record(turn: Turn, files: list[str]) -> bytes:
    views = zip(turn.azimuth.tolist(), turn.elevation.tolist(), turn.is_given.tolist(), strict=True)
    fields = {
        "resolution": turn.resolution,
        "views": [{"azimuth": a, "elevation": e, "given": given} for a, e, given in views],
        "files": files,
    }
    return (json.dumps(fields, indent=1) + "\n").encode()
