import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SHAPE
from safetensors.numpy import load_file, save_file
from tiny_vae import write_vae

from faces.config import FaceConfig
from infer.config import DirectionsConfig, FilesConfig, HeadsConfig, PortraitConfig, SamplerConfig, ViewsConfig
from infer.make import heads, read_identity, views, with_recogniser
from manifests.storage import Storage
from spinset import main
from train.families import read_about
from train.networks.config import About, write_card
from train.networks.model import load_vae, save_model
from weights.embedded import EMBEDDED as FILTERS
from weights.embedded import HEADS64
from weights.files import sha256

QUICK = SamplerConfig(steps=2)
ALIGNED = PortraitConfig(aligned=True, face=FaceConfig(arcface=str(FILTERS / "arcface.onnx")))
FILES = FilesConfig(("images", "sheet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model of random weights."""
    root = tmp_path_factory.mktemp("made")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = load_vae(write_vae(root / "vae"))
        about = About("5 noise heads", 16, recogniser=sha256(FILTERS / "arcface.onnx"))
        save_model(SHAPE.build(vae, about), root / "model")
    return str(root / "model")


@pytest.fixture
def photo(tmp_path) -> str:
    """A square cut of a grey head without its background."""
    pixels = np.zeros((128, 128, 4), np.uint8)
    row, column = np.mgrid[:128, :128]
    pixels[(row - 64) ** 2 + (column - 64) ** 2 < 40**2] = (150, 120, 100, 255)
    file = tmp_path / "photo.png"
    Image.fromarray(pixels).save(file)
    return str(file)


def views_config(folder: str, photo: str, out: Path | str, **changes) -> ViewsConfig:
    fields = {
        "photos": (photo,),
        "out": str(out),
        "directions": DirectionsConfig(10),
        "sampler": QUICK,
        "portrait": ALIGNED,
        "files": FILES,
    }
    return ViewsConfig(folder, **{**fields, **changes})


def test_a_photo_becomes_a_folder_of_views(folder, photo, tmp_path):
    lines = list(views(views_config(folder, photo, tmp_path / "out")))
    assert lines[0] == f"{tmp_path / 'out'}: 10 views"
    assert "the model knows 5 noise heads of 16 px" in lines
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 10
    assert len(list((tmp_path / "out" / "normals").glob("*.png"))) == 10
    identity = load_file(tmp_path / "out" / "identity.safetensors")["identity"]
    assert np.linalg.norm(identity) == pytest.approx(1, abs=1e-4)
    # The same command again writes the same.
    before = {file: file.read_bytes() for file in (tmp_path / "out" / "images").iterdir()}
    list(views(views_config(folder, photo, tmp_path / "out")))
    assert {file: file.read_bytes() for file in (tmp_path / "out" / "images").iterdir()} == before


def with_about(folder: str, copy: Path, **changes) -> str:
    """A copy of the model whose folder says something else of it."""
    shutil.copytree(folder, copy)
    shape, about = read_about(copy)
    write_card(shape, replace(about, **changes), copy)
    return str(copy)


def test_the_embedded_recogniser_comes_by_itself_to_the_models_that_were_trained_with_it(folder, photo, tmp_path):
    plain = PortraitConfig(aligned=True)
    lines = list(views(views_config(folder, photo, tmp_path / "by-itself", portrait=plain)))
    assert not any("identity" in line for line in lines)
    list(views(views_config(folder, photo, tmp_path / "named")))
    found = [load_file(tmp_path / out / "identity.safetensors")["identity"] for out in ("by-itself", "named")]
    np.testing.assert_array_equal(*found)
    config = views_config("heads64", photo, tmp_path / "out", portrait=plain)
    assert with_recogniser(config, read_about(HEADS64)[1]).face.arcface == str(FILTERS / "arcface.onnx")
    alone = with_about(folder, tmp_path / "alone", identity=False)
    assert with_recogniser(config, read_about(Path(alone))[1]) == plain


def test_other_models_refuse_the_embedded_recogniser(folder, photo, tmp_path, capsys):
    other = with_about(folder, tmp_path / "other", recogniser="0" * 64)
    arguments = ["views", other, photo, "--out", str(tmp_path / "out"), "--aligned", "--views", "8", "--steps", "1"]
    named = ["--face.arcface", str(FILTERS / "arcface.onnx")]
    assert main([*arguments, *named]) == 2
    said = capsys.readouterr().err.strip()
    assert "--face.arcface is the embedded recogniser, which knows procedural heads only" in said
    assert "--allow-embedded" in said and "\n" not in said
    assert not (tmp_path / "out").exists()
    assert main([*arguments, *named, "--allow-embedded", "--outputs", "sheet"]) == 0
    assert "the model was trained with another recogniser" in capsys.readouterr().out


def test_a_photo_without_a_recogniser_has_no_identity_and_says_so(folder, photo, tmp_path):
    folder = with_about(folder, tmp_path / "other", recogniser="0" * 64)
    lines = list(views(views_config(folder, photo, tmp_path / "out", portrait=PortraitConfig(aligned=True))))
    assert any(line.startswith("without identity: ") for line in lines)
    assert not (tmp_path / "out" / "identity.safetensors").exists()


def test_several_photos_are_given_at_their_sides(folder, photo, tmp_path):
    changes = {"photos": (photo, photo), "photo_azimuths": (90.0,), "directions": DirectionsConfig(8)}
    list(views(views_config(folder, photo, tmp_path / "out", **changes)))
    record = json.loads((tmp_path / "out" / "turn.json").read_text())
    assert [view["azimuth"] for view in record["views"] if view["given"]] == [0, 90]


def test_new_heads_and_heads_between_two(folder, photo, tmp_path):
    common = {"directions": DirectionsConfig(8), "sampler": QUICK, "files": FILES}
    lines = list(heads(HeadsConfig(folder, str(tmp_path / "new"), heads=2, **common)))
    assert lines[0].endswith("head_000: 8 views")
    first, second = ((tmp_path / "new" / f"head_00{i}" / "sheet.png").read_bytes() for i in (0, 1))
    assert first != second
    list(views(views_config(folder, photo, tmp_path / "out")))
    other = tmp_path / "other.safetensors"
    save_file({"identity": np.eye(512, dtype=np.float32)[3]}, other)
    people = (str(tmp_path / "out" / "identity.safetensors"), str(other))
    config = HeadsConfig(folder, str(tmp_path / "between"), heads=3, identities=people, **common)
    list(heads(config))
    sheets = [(tmp_path / "between" / f"head_00{i}" / "sheet.png").read_bytes() for i in range(3)]
    assert len(set(sheets)) == 3
    alone = replace(config, identities=people[:1], heads=1, out=str(tmp_path / "alone"))
    list(heads(alone))
    assert (tmp_path / "alone" / "head_000" / "sheet.png").read_bytes() == sheets[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"does not exist; spinset views writes identity.safetensors"),
        (b"junk", r"holds no identity"),
        ({"other": np.ones(512, np.float32)}, r"holds no identity"),
        ({"identity": np.ones(7, np.float32)}, r"holds \(7,\) numbers; an identity is 512"),
        ({"identity": np.full(512, np.nan, np.float32)}, r"finite"),
        ({"identity": np.zeros(512, np.float32)}, r"not all zero"),
    ],
)
def test_files_that_are_no_identity(tmp_path, content, says):
    file = tmp_path / "identity.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save_file(content, file)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        read_identity(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["views", "MODEL", "PHOTO"], "--out"),
        (["views", "nowhere", "PHOTO", "--out", "OUT", "--aligned"], "nowhere is no model of spinset"),
        (["views", "MODEL", "nowhere.jpg", "--out", "OUT", "--aligned"], "nowhere.jpg"),
        (["views", "MODEL", "PHOTO", "--out", "OUT"], "a photo needs a face detector"),
        (["views", "MODEL", "PHOTO", "PHOTO", "--out", "OUT", "--aligned"], "2 photos and 0 --photo-azimuths"),
        (["views", "MODEL", "PHOTO", "--out", "OUT", "--aligned", "--outputs", "film"], "there is no output 'film'"),
        (
            ["views", "MODEL", "PHOTO", "--out", "OUT", "--aligned", "--device", "cuda"],
            "this machine has no usable CUDA device",
        ),
        (
            ["views", "MODEL", "PHOTO", "--out", "OUT", "--aligned", "--device", "tpu"],
            "it must be cpu, cuda, or cuda:N",
        ),
        (["heads", "MODEL", "--out", "OUT", "--device", "tpu"], "it must be cpu, cuda, or cuda:N"),
        (["evaluate", "MODEL", "--data", "x", "--device", "tpu"], "it must be cpu, cuda, or cuda:N"),
        (["evaluate", "--pair", "a", "b", "--device", "cuda"], "has no usable CUDA device"),
        (
            ["views", "MODEL", "PHOTO", "--out", "OUT", "--aligned", "--elevations", "95"],
            "it must be from -89.9 to 89.9",
        ),
        (["heads", "MODEL", "--out", "OUT", "--identities", "nowhere"], "nowhere does not exist"),
        (["heads", "MODEL", "--out", "OUT", "--heads", "0"], "--heads is 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(folder, photo, tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = {"MODEL": folder, "PHOTO": photo, "OUT": str(tmp_path / "out")}
    assert main([names.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_the_command_of_the_docs(folder, photo, tmp_path, capsys):
    arguments = ["--aligned", "--matte.uniform", "--views", "8"]
    out = str(tmp_path / "out")
    assert main(["views", folder, photo, "--out", out, *arguments, "--steps", "2", "--outputs", "sheet"]) == 0
    assert f"{out}: 8 views" in capsys.readouterr().out
    assert (tmp_path / "out" / "identity.safetensors").exists()


def test_a_folder_of_something_else_is_left_alone(folder, photo, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out"):
        list(views(views_config(folder, photo, tmp_path / "out")))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_identity_of_an_earlier_person_is_removed_with_their_views(folder, photo, tmp_path):
    out = tmp_path / "out"
    list(views(views_config(folder, photo, out)))
    assert (out / "identity.safetensors").is_file()
    # A model that names no recogniser: without one of the user's there is no identity.
    shutil.copytree(folder, other := tmp_path / "other")
    about = json.loads((other / "model.json").read_text())
    about["about"]["recogniser"] = ""
    (other / "model.json").write_text(json.dumps(about))
    list(views(views_config(str(other), photo, out, portrait=PortraitConfig(aligned=True))))
    assert not (out / "identity.safetensors").exists()


def test_an_address_takes_the_identity_too(folder, photo):
    out = "memory://views-of-a-photo/out"
    list(views(views_config(folder, photo, out)))
    storage = Storage(out)
    assert storage.exists("identity.safetensors") and storage.exists("sheet.png")
    assert "identity.safetensors" in json.loads(storage.read("turn.json"))["files"]


def test_the_photo_is_read_before_a_model_is_opened(photo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nobody\.png"):
        list(views(views_config("no-such-model", str(tmp_path / "nobody.png"), tmp_path / "out")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, r"^--steps is 0; it must be from 1 to 1000$"),
        ({"scale": float("nan")}, r"^--scale is nan; it must be from 1 to 100$"),
        ({"scale": float("inf")}, r"^--scale is inf; it must be from 1 to 100$"),
        ({"scale": 0.5}, r"^--scale is 0\.5; it must be from 1 to 100$"),
    ],
)
def test_a_sampler_names_the_option_that_does_not_fit(changes, says):
    with pytest.raises(ValueError, match=says):
        SamplerConfig(**changes)


def test_the_views_of_the_embedded_model_stay_as_they_were(tmp_path):
    """Pixels of commit 28ee640, before views, heads and evaluate shared a sampler; other processors may round differently."""
    golden = Path(__file__).parents[1] / "golden"
    arguments = ["views", "heads64", str(golden / "heads64_photo.png"), "--out", str(tmp_path / "out"), "--aligned"]
    arguments += ["--matte.uniform", "--views", "8", "--steps", "3", "--seed", "5", "--sampler", "heun"]
    assert main([*arguments, "--precision", "fp32", "--outputs", "images"]) == 0
    files = sorted((tmp_path / "out" / "images").iterdir())
    row = np.concatenate([np.asarray(Image.open(file)) for file in files], 1).astype(int)
    difference = np.abs(row - np.asarray(Image.open(golden / "heads64_views.png")).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
