"""Copies of NeRSemble, FaceScape and RenderMe-360 in small, laid out as theirs, with cameras that are known."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.random import default_rng
from stages import AZIMUTHS, ELEVATIONS, PLACE, POINTS, TURN, UNIT, FiveDots, facescape, nersemble, seen, stage

from faces.config import MatteConfig
from geometry.cameras import Cameras, orbit
from geometry.directions import FOCAL
from infer.config import StageConfig
from infer.evaluation.held_out import HeldOut
from infer.evaluation.importers import open_stage
from infer.evaluation.importers.head_frame import head_frame, similarity_3d, straightened


def read_all(layout: str, root: Path, resolution: int = 128, **config) -> HeldOut:
    people = open_stage(layout, str(root), StageConfig(**config), FiveDots(), resolution, 0)
    person = people.person(people.names[0])
    return person.read(np.arange(len(person.azimuth)))


def check(held: HeldOut, views: int) -> None:
    """Cameras and dots are where they would be in a dataset."""
    np.testing.assert_allclose(held.azimuth, AZIMUTHS[:views], atol=1.2)
    np.testing.assert_allclose(held.elevation, ELEVATIONS[:views], atol=1.2)
    np.testing.assert_allclose(held.points, POINTS, atol=5e-3)
    side = held.rgb.shape[-1]
    at = held.cameras.project(torch.from_numpy(held.points), side)[..., :2].numpy() - 0.5
    detector = FiveDots()
    for i in range(4):
        picture = ((held.rgb[i].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        (found,) = detector.detect(picture[..., ::-1], 0.5)[1]
        np.testing.assert_allclose(found, at[i], atol=side / 60)
    expected = orbit(held.azimuth.astype(float), held.elevation.astype(float))
    torch.testing.assert_close(held.cameras.c2w[:, :3, :3], expected.c2w[:, :3, :3], atol=1e-4, rtol=0)
    np.testing.assert_allclose(held.cameras.K[:, 0, 0] / held.cameras.positions.norm(dim=1), FOCAL / 2.7, rtol=1e-5)


def test_nersemble_of_its_first_version(tmp_path):
    held = read_all("nersemble", nersemble(tmp_path), frame=3, sequence="EMO-1-shout+laugh")
    check(held, 5)
    assert held.name == "018" and held.views == tuple(f"22{i}" for i in range(5))
    assert held.alpha is not None and 0 < held.alpha[0].mean() < 0.2
    # What is no person is white, and the dots are what they were.
    assert float(held.rgb[0][:, held.alpha[0] == 0].min()) == 1


def test_nersemble_of_its_second_version(tmp_path):
    width, height = 220, 320
    K, w2c = stage(2200, 3208, 8000.0)
    person = tmp_path / "240"
    (person / "calibration").mkdir(parents=True)
    params = {"intrinsics": K.tolist(), "world_2_cam": {f"22{i}": m.tolist() for i, m in enumerate(w2c)}}
    (person / "calibration" / "camera_params.json").write_text(json.dumps(params))
    small = K.copy()
    small[:2] /= 10
    films = person / "sequences" / "GLASSES" / "images"
    films.mkdir(parents=True)
    (person / "sequences" / "BACKGROUND" / "images").mkdir(parents=True)
    for i, matrix in enumerate(w2c):
        film = cv2.VideoWriter(str(films / f"cam_22{i}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, (width, height))
        for moment in range(3):
            rgb = seen(small, matrix, width, height) if moment == 1 else np.zeros((height, width, 3), np.uint8)
            film.write(np.ascontiguousarray(rgb[..., ::-1]))
        film.release()
    held = read_all("nersemble", tmp_path, frame=1)
    check(held, 5)
    assert held.alpha is None
    with pytest.raises(ValueError, match=r"has 3 moments, and --stage\.frame is 9"):
        read_all("nersemble", tmp_path, frame=9)


def test_facescape(tmp_path):
    held = read_all("facescape", facescape(tmp_path))
    assert held.views == ("0", "1", "2", "3")
    check(held, 4)
    cut = read_all("facescape", tmp_path, matte=MatteConfig(uniform=True))
    assert cut.alpha is not None and float(cut.rgb[0][:, cut.alpha[0] == 0].min()) == 1


def test_renderme360(tmp_path):
    h5py = pytest.importorskip("h5py")
    width, height = 400, 300
    K, w2c = stage(width, height, 900.0)
    for kind in ("raw", "anno"):
        (tmp_path / kind / "0026").mkdir(parents=True)
    with (
        h5py.File(tmp_path / "raw" / "0026" / "0026_e0_raw.smc", "w") as raw,
        h5py.File(tmp_path / "anno" / "0026" / "0026_e0_anno.smc", "w") as anno,
    ):
        for i, matrix in enumerate(w2c):
            rgb = seen(K, matrix, width, height)
            mask = np.repeat(np.where((rgb == 90).all(-1), 0, 255).astype(np.uint8)[..., None], 3, 2)
            raw[f"Camera/{i:02d}/color/7"] = cv2.imencode(".png", rgb[..., ::-1])[1].ravel()
            anno[f"Camera/{i:02d}/mask/7"] = cv2.imencode(".png", mask)[1].ravel()
            for name, value in (("K", K), ("D", np.zeros(5)), ("RT", np.linalg.inv(matrix))):
                anno[f"Calibration/{i:02d}/{name}"] = value
    held = read_all("renderme360", tmp_path)
    check(held, 5)
    assert held.alpha is not None and held.views == ("00", "01", "02", "03", "04")
    with pytest.raises(ValueError, match="has no moment 8"):
        read_all("renderme360", tmp_path, frame=8)


def test_faces_that_are_found_wrongly_do_not_move_the_head():
    K, w2c = stage(400, 300, 900.0)
    world = UNIT * POINTS @ TURN.T + PLACE
    at = np.einsum("ij,vjp->vip", K, w2c[:, :3, :3] @ world.T + w2c[:, :3, 3:])
    points = (at[:, :2] / at[:, 2:]).transpose(0, 2, 1) + default_rng(0).normal(0, 0.2, (5, 5, 2))
    points[3] += 40
    found = np.array([True, True, True, True, False])
    frame = head_frame(points, found, np.tile(K, (5, 1, 1)), w2c)
    assert frame.scale * UNIT == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(frame.rotation, TURN.T, atol=0.03)
    np.testing.assert_allclose(frame.points, POINTS, atol=3e-3)
    with pytest.raises(ValueError, match="a face was found in 1 of 5 views"):
        head_frame(points, np.eye(5, dtype=bool)[0], np.tile(K, (5, 1, 1)), w2c)
    others = w2c.copy()
    others[:, :3, :3] = [cv2.Rodrigues(default_rng(i).normal(0, 0.3, 3))[0] @ m for i, m in enumerate(w2c[:, :3, :3])]
    with pytest.raises(ValueError, match=r"do not agree|do not fit"):
        head_frame(points, found, np.tile(K, (5, 1, 1)), others)


def test_a_similarity_is_found_and_never_a_mirror():
    target = 2.5 * POINTS @ TURN.T + 1
    scale, rotation, shift = similarity_3d(POINTS, target)
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(rotation, TURN, atol=1e-9)
    np.testing.assert_allclose(shift, 1, atol=1e-9)
    assert np.linalg.det(similarity_3d(POINTS, target * [-1, 1, 1])[1]) == pytest.approx(1)


def test_a_camera_of_a_dataset_is_straight_already():
    cameras = orbit(np.array([30.0]), np.array([10.0]))
    K = Cameras(cameras.c2w, cameras.K).pixel_K(64)[0].double().numpy()
    K[:2, 2] -= 0.5
    picture = default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    straight, camera = straightened(picture, K, cameras.c2w[0].double().numpy(), 64)
    assert np.abs(straight.astype(int) - picture).max() <= 2
    torch.testing.assert_close(camera.c2w, cameras.c2w, atol=1e-5, rtol=0)
    torch.testing.assert_close(camera.K, cameras.K, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("layout", "match"),
    [
        ("nersemble", "has no people; the layout is 018/sequences"),
        ("facescape", "has no people; the layout is 122/4_anger/0.jpg"),
    ],
)
def test_folders_that_are_laid_out_otherwise(tmp_path, layout, match):
    with pytest.raises(FileNotFoundError, match="--data: there is no folder"):
        read_all(layout, tmp_path / "nowhere")
    (tmp_path / "018").mkdir()
    with pytest.raises(ValueError, match=match):
        read_all(layout, tmp_path)


def test_parts_that_are_missing(tmp_path):
    facescape(tmp_path)
    (tmp_path / "122" / "4_anger" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1.jpg does not exist; the copy of the set is not complete"):
        read_all("facescape", tmp_path)
    file = tmp_path / "122" / "4_anger" / "params.json"
    params = json.loads(file.read_text())
    del params["0_valid"]
    file.write_text(json.dumps(params))
    with pytest.raises(ValueError, match=r"params.json has no '0_valid'"):
        read_all("facescape", tmp_path)
    with pytest.raises(ValueError, match="has no people"):
        read_all("facescape", tmp_path, sequence="1_neutral")
