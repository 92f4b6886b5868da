"""Exports are whole or not there, resume, hold what was selected, and refuse in one line what cannot be."""

import hashlib
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from exports import export as job
from exports.config import SHARDED, UNPACKED, ExportConfig, PackConfig
from exports.eg3d import Eg3d
from exports.export import export
from exports.huggingface import BIASES
from exports.pack import pack
from exports.pictures import background_of, rgba_png
from manifests.dataset import Dataset
from manifests.pictures import encode_picture
from manifests.verify import verify

from .conftest import make

FORMATS = [name for name in (*UNPACKED, *SHARDED) if name != "facelift"]


def files(folder: Path) -> dict[str, str]:
    paths = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith((".done.json", ".sqlite"))]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.mark.parametrize("format", FORMATS)
def test_stopped_anywhere_it_resumes_to_the_same_files(eggs, exported, tmp_path, monkeypatch, format):
    whole, write, left = files(exported(format)), job._write, [0]

    def stop(path, chunks):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(path, chunks)

    monkeypatch.setattr(job, "_write", stop)
    config = ExportConfig(eggs.storage.root, str(tmp_path / "out"), format, selection="clean")
    for writes in (1, 2, 13):
        left[0] = writes
        if len(whole) > writes + 2:
            with pytest.raises(KeyboardInterrupt):
                export(config)
            assert not (tmp_path / "out").exists()
    left[0] = 10**6
    assert "2 identities for" in export(config)
    assert files(tmp_path / "out") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert "is this export already" in export(config)


def test_what_a_crash_cut_is_made_again(eggs, exported, tmp_path, monkeypatch):
    """A cut record, a cut line of the journal and a cut picture of an identity that is not in the journal."""
    partial = tmp_path / "out.partial"
    config = ExportConfig(eggs.storage.root, str(tmp_path / "out"), "eg3d", selection="clean")
    record = (exported("eg3d") / "export.json").read_bytes()
    partial.mkdir()
    (partial / "export.json").write_bytes(record[:20])
    with monkeypatch.context() as patch:
        patch.setattr(Eg3d, "finish", lambda self, root: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(config)
    assert (partial / ".done").read_text() == "0\n2\n"
    (partial / ".done").write_text("0\n2")
    (partial / "images/0000002/0000002_v003.png").write_bytes(b"cut")
    export(config)
    assert files(tmp_path / "out") == files(exported("eg3d"))


@pytest.mark.parametrize("format", FORMATS)
def test_only_what_was_selected_is_there(exported, format):
    names = " ".join(files(exported(format)))
    if format == "embedding-atlas":
        names = " ".join(pq.read_table(exported(format) / "data.parquet").column("id").to_pylist())
    if format in UNPACKED:
        assert "0000000" in names and "0000002" in names and "0000001" not in names
    else:
        copy = Dataset(str(exported(format)))
        assert list(verify(copy, deep=True)) == []
        assert copy.all_identities.column("identity").to_pylist() == [0, 2]
        assert copy.all_identities.column("views").to_pylist() == [5, 4]


def test_whole_datasets_are_linked_and_not_copied(eggs, tmp_path):
    export(ExportConfig(eggs.storage.root, str(tmp_path / "out"), "energon"))
    name = eggs.file(0, ".tar")
    assert (tmp_path / "out" / name).samefile(eggs.storage.path(name))
    assert Dataset(str(tmp_path / "out")).plan == eggs.plan


def test_nothing_is_ever_written_over(eggs, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="full holds other files"):
        export(ExportConfig(eggs.storage.root, str(tmp_path / "full"), "eg3d"))
    export(ExportConfig(eggs.storage.root, str(tmp_path / "one"), "eg3d", identities="1"))
    with pytest.raises(ValueError, match="one holds other files"):
        export(ExportConfig(eggs.storage.root, str(tmp_path / "one"), "eg3d", identities="2"))
    (tmp_path / "one").rename(tmp_path / "two.partial")
    with pytest.raises(ValueError, match=r"two\.partial belongs to another export"):
        export(ExportConfig(eggs.storage.root, str(tmp_path / "two"), "eg3d", identities="2"))
    with pytest.raises(ValueError, match="holds other files"):
        export(ExportConfig(eggs.storage.root, eggs.storage.root, "energon"))
    assert list(verify(eggs, deep=True)) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"format": "obj"},
            "--format is 'obj'; there are nerfstudio, colmap, eg3d, facelift, fiftyone, lightly-studio, embedding-atlas, "
            "huggingface, croissant, energon",
        ),
        ({"selection": "dirty"}, "there is no selection 'dirty' (selections: clean)"),
        ({"identities": "1-2"}, "give a count such as 100"),
        ({"identities": "9:"}, "nothing is left"),
        ({"format": "facelift"}, "has rig scatter-5; FaceLift needs --rig facelift-6"),
        ({"dest": "s3://bucket/out"}, "exports are made in a local folder"),
    ],
)
def test_what_cannot_be_exported(eggs, tmp_path, changes, problem):
    fields = {"out": eggs.storage.root, "dest": str(tmp_path / "out"), "format": "eg3d", **changes}
    with pytest.raises(ValueError, match=re.escape(problem)) as error:
        export(ExportConfig(**fields))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_colmap_has_no_points_without_meshes(tmp_path, capsys):
    dataset = make(tmp_path, "orbit-2", save_meshes=False, identities=1)
    export(ExportConfig(dataset.storage.root, str(tmp_path / "out"), "colmap"))
    sparse = tmp_path / "out/0000000/sparse/0"
    (line,) = (sparse / "points3D.txt").read_text().splitlines()
    assert line.startswith("# There are no points")
    assert len((sparse / "images.txt").read_text().splitlines()) == 4
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "1 of 1 identities have no mesh" in warnings[0] and "--save-meshes" in warnings[0]


def test_a_pack_can_be_exported_with_its_meshes_and_filters(eggs, tmp_path):
    made = pack(PackConfig(eggs.storage.root, str(tmp_path / "pack"), "clean"))
    assert list(verify(made, deep=True)) == []
    export(ExportConfig(str(tmp_path / "pack"), str(tmp_path / "colmap"), "colmap"))
    assert (tmp_path / "colmap/0000002/sparse/0/points3D.txt").exists()
    export(ExportConfig(str(tmp_path / "pack"), str(tmp_path / "hub"), "huggingface"))
    card = (tmp_path / "hub/README.md").read_text()
    assert "selection clean" in card and "keeps 2 of 3 identities and 9 of 15 views" in card
    assert "6 views dropped: bad" in card and BIASES in card and "licence" in card


def test_damage_is_not_exported(eggs, tmp_path):
    shutil.copytree(eggs.storage.root, tmp_path / "copy")
    dataset = Dataset(str(tmp_path / "copy"))
    entry = dataset.views(0).to_pylist()[1]["rgb"]
    tar = tmp_path / "copy" / dataset.file(0, ".tar")
    data = bytearray(tar.read_bytes())
    data[entry["offset"] + 30] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=r"0000000_v001\.rgb\.jpg is damaged; run spinset repair "):
        export(ExportConfig(str(tmp_path / "copy"), str(tmp_path / "out"), "eg3d"))
    assert not (tmp_path / "out").exists()


def test_straight_colour_is_that_of_the_head_alone():
    colour, alpha = np.full((1, 4, 3), (200, 40, 90), float), np.array([[0, 64, 128, 255]], np.uint8)
    a = alpha[..., None] / 255
    for background in ((255, 255, 255), (0, 0, 0), (16, 128, 32)):
        seen = (a * colour + (1 - a) * background + 0.5).astype(np.uint8)
        with Image.open(io.BytesIO(rgba_png(encode_picture(seen), encode_picture(alpha), background))) as image:
            rgba = np.asarray(image)
        assert (rgba[..., 3] == alpha).all() and (rgba[0, 0] == 0).all()
        assert np.abs(rgba[0, 1:, :3].astype(int) - colour[0, 1:]).max() <= 4


def test_the_background_is_the_sources(eggs):
    from dataclasses import replace

    def of(name):
        return background_of(replace(eggs.plan, source={"settings": {"background": name}}))

    assert background_of(eggs.plan) == of("white") == (255, 255, 255)
    assert of("grey") == (128, 128, 128) and of("#102030") == (16, 32, 48) and of("own") is None
