"""Mesh vertices fall on the same pixels when each format is read by its own documentation."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from datagen.rigs import RIGS, Rig
from exports.config import ExportConfig
from exports.export import export
from exports.pictures import cameras_of
from manifests.dataset import Dataset
from manifests.ply import decode_mesh
from manifests.selection import ROWS, write_selection
from manifests.subset import KeptIdentity, kept_identities, open_subset

from .conftest import make

EGG = 2
VIEWS = [0, 1, 3, 4]


@pytest.fixture(scope="module")
def egg(eggs) -> KeptIdentity:
    (identity,) = kept_identities(eggs, open_subset(eggs, "clean")[0], [EGG])
    return identity


@pytest.fixture(scope="module")
def vertices(egg) -> np.ndarray:
    return decode_mesh(egg.mesh())[0].astype(float)


def truth(identity: KeptIdentity, vertices: np.ndarray) -> np.ndarray:
    """Pixels by the dataset's own documentation: OpenCV camera-to-world, K times the resolution, centres at +0.5."""
    cameras = cameras_of(identity)
    in_camera = np.linalg.inv(cameras.c2w.double().numpy()) @ homogeneous(vertices)
    in_image = cameras.K.double().numpy() @ in_camera[:, :3]
    return 64 * (in_image[:, :2] / in_image[:, 2:]).transpose(0, 2, 1)


def homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1).T


def test_the_truth_is_what_the_pictures_show(egg, vertices):
    """The box around the vertices is the box around the silhouette, to a pixel."""
    for pixels, alpha in zip(truth(egg, vertices), *egg.members("alpha"), strict=True):
        rows, columns = np.nonzero(picture(alpha) >= 128)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(np.concatenate([pixels.min(0), pixels.max(0)]) - box).max() < 1.2


def picture(data: bytes | Path) -> np.ndarray:
    with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
        return np.asarray(image)


def test_nerfstudio(egg, vertices, exported, eggs):
    """OpenGL cameras look along -z with y up; the saved world is applied_transform times the original one."""
    folder = exported("nerfstudio") / f"{EGG:07d}"
    meta = json.loads((folder / "transforms.json").read_text())
    world = np.array(meta["applied_transform"]) @ homogeneous(vertices)
    assert np.allclose(np.array(meta["applied_transform"])[:, :3] @ [0, 1, 0], [0, 0, 1])
    frames = sorted(meta["frames"], key=lambda frame: frame["file_path"])
    assert [frame["file_path"] for frame in frames] == [f"images/{view:03d}.jpg" for view in VIEWS]
    for frame, pixels, rgb in zip(frames, truth(egg, vertices), *egg.members("rgb"), strict=True):
        x, y, z = (np.linalg.inv(frame["transform_matrix"]) @ homogeneous(world.T))[:3]
        found = [meta["cx"] + meta["fl_x"] * x / -z, meta["cy"] - meta["fl_y"] * y / -z]
        assert np.abs(np.stack(found, 1) - pixels).max() < 0.5
        assert (folder / frame["file_path"]).read_bytes() == rgb
        mask = picture(folder / frame["mask_path"])
        assert mask.shape == (meta["h"], meta["w"]) and set(np.unique(mask)) == {0, 255}
    header, _, body = (folder / meta["ply_file_path"]).read_bytes().partition(b"end_header\n")
    assert b"binary_little_endian" in header
    points = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    assert (np.abs(points["xyz"]).max(0) <= np.abs(world).max(1) + 1e-5).all()
    assert_coloured_like(points["rgb"], eggs)


def assert_coloured_like(rgb: np.ndarray, eggs: Dataset) -> None:
    """An egg has one colour; JPEG and its rim blur it."""
    facts = json.loads(eggs.all_identities.column("facts").to_pylist()[EGG])
    assert np.abs(np.median(rgb, 0) - 255 * np.array(facts["colour"])).max() < 4
    assert (np.abs(rgb - np.median(rgb, 0)).max(1) < 25).mean() > 0.95


def test_colmap(egg, vertices, exported, eggs):
    """World to camera by a quaternion, w first, and a translation; then PINHOLE fx fy cx cy."""
    folder = exported("colmap") / f"{EGG:07d}"
    number, model, w, h, *lens = (folder / "sparse/0/cameras.txt").read_text().split()
    assert (number, model, w, h) == ("1", "PINHOLE", "64", "64")
    fx, fy, cx, cy = map(float, lens)
    lines = (folder / "sparse/0/images.txt").read_text().split("\n")[::2][:-1]
    assert [line.split()[-1] for line in lines] == [f"{view:03d}.jpg" for view in VIEWS]
    for line, pixels in zip(lines, truth(egg, vertices), strict=True):
        qw, qx, qy, qz, *t = map(float, line.split()[1:8])
        q = np.array([qx, qy, qz])
        turned = vertices + 2 * np.cross(q, np.cross(q, vertices) + qw * vertices)
        x, y, z = (turned + t).T
        assert np.abs(np.stack([fx * x / z + cx, fy * y / z + cy], 1) - pixels).max() < 0.5
        assert (folder / "masks" / f"{line.split()[-1]}.png").exists()
    points = np.loadtxt(folder / "sparse/0/points3D.txt")
    assert len(points) == 20_000
    distance = np.abs(np.linalg.norm(points[:, 1:4] / np.abs(vertices).max(0), axis=1) - 1)
    assert distance.max() < 0.03
    assert_coloured_like(points[:, 4:7], eggs)


def test_eg3d(egg, vertices, exported):
    """25 numbers: OpenCV camera-to-world and K of an image of size 1, found by the file's name under images/."""
    folder = exported("eg3d")
    labels = dict(json.loads((folder / "images/dataset.json").read_text())["labels"])
    for kind in ("images", "masks"):
        assert sorted(labels) == sorted(str(p.relative_to(folder / kind)) for p in (folder / kind).rglob("*.png"))
    assert np.array(list(labels.values())).shape == (9, 25)
    for view, pixels, rgb in zip(VIEWS, truth(egg, vertices), *egg.members("rgb"), strict=True):
        name = f"{EGG:07d}/{EGG:07d}_v{view:03d}.png"
        c2w, K = np.array(labels[name][:16]).reshape(4, 4), np.array(labels[name][16:]).reshape(3, 3)
        in_image = K @ (np.linalg.inv(c2w) @ homogeneous(vertices))[:3]
        assert np.abs(64 * (in_image[:2] / in_image[2]).T - pixels).max() < 0.5
        assert (picture(folder / "images" / name) == picture(rgb)).all()
        assert picture(folder / "masks" / name).shape == (64, 64)


@pytest.fixture(scope="module")
def lifted(tmp_path_factory):
    """Eggs in both of FaceLift's layouts, with the dataset they come from."""
    root = tmp_path_factory.mktemp("facelift")

    def exported(rig: str) -> tuple[Dataset, Path]:
        dataset = make(root, rig)
        export(ExportConfig(dataset.storage.root, str(root / f"{rig}-out"), "facelift"))
        return dataset, root / f"{rig}-out"

    return exported


def test_facelift_reconstructor(lifted):
    """w2c takes Blender's world (z up, face to -y) to OpenCV cameras; fx fy cx cy in pixels."""
    dataset, folder = lifted("facelift-32")
    (egg,) = kept_identities(dataset, open_subset(dataset)[0], [1])
    vertices = decode_mesh(egg.mesh())[0].astype(float)
    blender = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], 1) * 2.7 / 0.81
    document = json.loads((folder / "0000001/opencv_cameras.json").read_text())
    assert document["id"] == "0000001" and len(document["frames"]) == 32
    for view, (frame, pixels) in enumerate(zip(document["frames"], truth(egg, vertices), strict=True)):
        x, y, z = (np.array(frame["w2c"]) @ homogeneous(blender))[:3]
        found = [frame["cx"] + frame["fx"] * x / z, frame["cy"] + frame["fy"] * y / z]
        assert np.abs(np.stack(found, 1) - pixels).max() < 0.5
        assert frame["file_path"] == f"images/cam_{view:03d}.png" and frame["w"] == frame["h"] == 64
        assert picture(folder / "0000001" / frame["file_path"]).shape == (64, 64, 4)
    lists = [(folder / f"data_gslrm_{split}.txt").read_text().split() for split in ("train", "val")]
    assert lists == [[f"{folder}/0000001", f"{folder}/0000002"], [f"{folder}/0000000"]]
    assert all((Path(sample) / "opencv_cameras.json").exists() for sample in [*lists[0], *lists[1]])


def test_facelift_cameras_are_those_of_its_released_sample(lifted):
    """Numbers of data_sample/gslrm/sample_000/opencv_cameras.json."""
    frames = json.loads((lifted("facelift-32")[1] / "0000000/opencv_cameras.json").read_text())["frames"]
    released = {
        0: [[0, 1, 0, 0], [0.34202, 0, -0.939693, 0], [-0.939693, 0, -0.34202, 2.7], [0, 0, 0, 1]],
        4: [
            [-0.707107, 0.707107, 0, 0], [0.241845, 0.241845, -0.939693, 0],
            [-0.664463, -0.664463, -0.34202, 2.7], [0, 0, 0, 1],
        ],
        24: [[1, 0, 0, 0], [0, -0.34202, -0.939693, 0], [0, 0.939693, -0.34202, 2.7], [0, 0, 0, 1]],
    }  # fmt: skip
    for view, w2c in released.items():
        assert np.abs(np.array(frames[view]["w2c"]) - w2c).max() < 1e-5
        # Theirs is 548.99377 px at 512 px; these pictures have 64.
        assert [frames[view][name] for name in ("fx", "fy", "cx", "cy")] == pytest.approx([68.62422, 68.62422, 32, 32])


def test_facelift_warns_of_a_dataset_with_another_lens(tmp_path, monkeypatch, capsys):
    """Made by a version whose facelift rigs had the usual lens; its cameras are written as they are."""
    usual = RIGS["facelift-32"]
    monkeypatch.setitem(RIGS, usual.id, Rig(usual.id, usual.azimuth, usual.elevation))
    dataset = make(tmp_path, usual.id, identities=1)
    monkeypatch.undo()
    assert "radius" not in dataset.plan.rig and "focal" not in dataset.plan.rig
    export(ExportConfig(dataset.storage.root, str(tmp_path / "out"), "facelift"))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "focal length of 4.265 image widths; FaceLift's heads have 1.072" in warnings[0]
    frame = json.loads((tmp_path / "out/0000000/opencv_cameras.json").read_text())["frames"][0]
    assert frame["fx"] == pytest.approx(64 * 4.2647) and frame["w2c"][2][3] == pytest.approx(2.7)


def test_facelift_needs_all_views_of_an_identity(lifted, tmp_path):
    dataset, _ = lifted("facelift-6")
    rows = [(egg, view, (egg, view) != (1, 4), None, None) for egg in range(3) for view in range(-1, 6)]
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), ROWS, strict=True)]
    write_selection(dataset, "gaps", pa.table(columns, schema=ROWS))
    config = ExportConfig(dataset.storage.root, str(tmp_path / "out"), "facelift", selection="gaps")
    with pytest.raises(ValueError, match=r"1 identities lack views \(the first is 1\).*whole_identities"):
        export(config)
    export(replace(config, identities="2:"))
    assert (tmp_path / "out/data_mvdiff_train.txt").read_text() == f"{tmp_path}/out/0000002\n"


def test_facelift_multiview(lifted):
    """Front, front right, right, back, left, front left: the subject's own right, which is at -x in our world."""
    dataset, folder = lifted("facelift-6")
    assert sorted(p.name for p in (folder / "0000002").iterdir()) == [f"cam_{view:03d}.png" for view in range(6)]
    (egg,) = kept_identities(dataset, open_subset(dataset)[0], [2])
    places = cameras_of(egg).positions.numpy() / 0.81
    diagonal = np.sqrt(0.5)
    expected = [[0, 0, 1], [-diagonal, 0, diagonal], [-1, 0, 0], [0, 0, -1], [1, 0, 0], [diagonal, 0, diagonal]]
    assert np.abs(places - expected).max() < 1e-5
    pairs = zip(sorted((folder / "0000002").iterdir()), *egg.members("alpha"), strict=True)
    assert all((picture(path)[..., 3] == picture(alpha)).all() for path, alpha in pairs)
    assert (folder / "data_mvdiff_train.txt").exists() and (folder / "data_mvdiff_val.txt").exists()
