"""Outputs are written, replaced and removed; files that spinset did not write stay."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from turns import ball_turn

from infer.config import OUTPUTS
from infer.outputs.surface import coloured_mesh
from infer.outputs.write import check_outputs, write_outputs
from train.batch import to_bytes


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Shapes are made on a coarse grid, to save time."""
    monkeypatch.setattr("infer.outputs.write.coloured_mesh", partial(coloured_mesh, grid=24))


@pytest.fixture
def turn():
    return ball_turn([0, 120, -120], [0, 0, 0], 24)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_that_needs_no_gpu(turn, tmp_path):
    out = tmp_path / "head"
    assert write_outputs(turn, str(out), [name for name in OUTPUTS if name != "splat"]) == []
    names = ["view_000_az+000.0_el+00.0.png", "view_001_az+120.0_el+00.0.png", "view_002_az-120.0_el+00.0.png"]
    assert files(out) == {
        *(f"{folder}/{name}" for folder in ("images", "normals") for name in names),
        *("sheet.png", "turntable.gif", "turntable.mp4", "viewer.html", "turn.json", "mesh.ply"),
        *("transforms.json", "sparse_pc.ply", *(f"sparse/0/{n}.txt" for n in ("cameras", "images", "points3D"))),
    }
    for folder, views in (("images", turn.rgb), ("normals", turn.normal)):
        for name, view in zip(names, views, strict=True):
            assert (np.asarray(Image.open(out / folder / name)) == to_bytes(view)).all()
    record = json.loads((out / "turn.json").read_text())
    assert set(record["files"]) == files(out) - {"turn.json"}
    assert record["views"][1] == {"azimuth": 120, "elevation": 0, "given": False}
    assert "<title>head</title>" in (out / "viewer.html").read_text()


def test_the_next_turn_takes_the_place_of_the_last(turn, tmp_path):
    write_outputs(turn, str(tmp_path / "out"), ["images", "sheet"])
    (tmp_path / "out/notes.txt").write_text("mine")
    write_outputs(replace(ball_turn([0, 90], [0, 10], 24), normal=None), str(tmp_path / "out"), ["images"])
    names = {"images/view_000_az+000.0_el+00.0.png", "images/view_001_az+090.0_el+10.0.png"}
    assert files(tmp_path / "out") == names | {"turn.json", "notes.txt"}


def test_what_is_of_somebody_else_is_left_alone(turn, tmp_path):
    full, file, strange, mixed = (tmp_path / name for name in ("full", "file", "strange", "mixed"))
    for path, name in ((full, "images/photo.png"), (strange, "turn.json")):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text("[1]")
    file.write_text("mine")
    write_outputs(turn, str(mixed), ["images"])
    (mixed / "sheet.png").write_text("mine")
    for path, message in (
        (full, "contains other files; choose a folder that is empty or does not exist"),
        (file, "is a file"),
        (strange, "already contains a turn.json that spinset did not write"),
        (mixed, "already contains sheet.png, which spinset did not write"),
    ):
        before = files(path)
        with pytest.raises(ValueError, match=message) as error:
            write_outputs(turn, str(path), ["sheet"])
        assert str(error.value).isprintable() and files(path) == before
    assert (mixed / "sheet.png").read_text() == "mine"


def test_what_cannot_be_written_is_known_before_a_turn_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = str(tmp_path / "out")
    for which, fps, message in (
        (["images", "film"], 24.0, "there is no output 'film'; there are images, sheet"),
        (["gif"], 0.0, "0 frames per second; it must be from 1 to 50"),
        (["splat"], 24.0, "needs an NVIDIA GPU"),
    ):
        with pytest.raises(ValueError, match=message):
            check_outputs(out, which, fps)
    (tmp_path / "out").mkdir()
    check_outputs(out, ["images"])


def test_views_without_a_shape_are_written_and_it_is_said(turn, tmp_path):
    blank = replace(turn, rgb=torch.ones_like(turn.rgb), normal=None)
    reason = "view 0 is white but for 0.0%: it shows no head to take a shape from"
    notes = write_outputs(blank, str(tmp_path / "out"), ["colmap", "mesh"])
    assert notes == [f"colmap without points: {reason}", f"no mesh: {reason}"]
    assert "mesh.ply" not in files(tmp_path / "out")
    assert (tmp_path / "out/sparse/0/points3D.txt").read_text() == ""


def test_a_write_that_is_cut_leaves_whole_files_that_the_next_one_replaces(turn, tmp_path, monkeypatch):
    from manifests.storage import Storage

    write_outputs(turn, str(tmp_path / "out"), ["sheet"])
    whole, written = Storage.write, []

    def cut(self, name, data):
        written.append(name)
        if len(written) == 3:
            raise OSError("the disk is full")
        whole(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", cut)
        with pytest.raises(OSError, match="full"):
            write_outputs(turn, str(tmp_path / "out"), ["images"])
    assert files(tmp_path / "out") == {"turn.json", written[1]}
    Image.open(tmp_path / "out" / written[1]).load()
    write_outputs(turn, str(tmp_path / "out"), ["gif"])
    assert files(tmp_path / "out") == {"turn.json", "turntable.gif"}
