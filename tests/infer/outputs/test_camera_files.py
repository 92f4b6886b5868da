"""Points fall on the pixels of the views when each format is read by its own documentation, and by its own tools."""

import io
import json
import warnings

import numpy as np
import pytest
import torch
import trimesh
from turns import ball_turn

from infer.outputs.pictures import file_names
from infer.outputs.surface import coloured_mesh
from infer.outputs.write import POINTS, colmap, nerfstudio

SIZE = 48
DIRECTIONS = ([0, 120, 240, 0, 120, 240], [-20, -20, -20, 40, 40, 40])


@pytest.fixture(scope="module")
def turn():
    return ball_turn(*DIRECTIONS, SIZE)


@pytest.fixture(scope="module")
def shape(turn):
    return coloured_mesh(turn, 32)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.2, 0.2, (50, 3))


def truth(turn, points: np.ndarray) -> np.ndarray:
    return turn.cameras.project(torch.from_numpy(points).float(), SIZE)[..., :2].numpy()


def test_what_lies_to_the_side_is_seen_there(turn, points):
    """By hand: from the front, +x is right and +y is up."""
    x, y = truth(ball_turn([0.0], [0.0]), np.array([[0.1, 0.05, 0.0]]))[0, 0]
    assert x == pytest.approx(24 + 48 * 4.2647 * 0.1 / 2.7, abs=0.01)
    assert y == pytest.approx(24 - 48 * 4.2647 * 0.05 / 2.7, abs=0.01)


def test_nerfstudio(turn, shape, points):
    """OpenGL cameras look along -z with y up, in the world that applied_transform makes of ours, where z is up."""
    files = dict(nerfstudio(turn, shape))
    meta = json.loads(files["transforms.json"])
    assert (meta["w"], meta["h"]) == (SIZE, SIZE)
    applied = np.array(meta["applied_transform"])
    assert np.allclose(applied[:, :3] @ [0, 1, 0], [0, 0, 1])
    world = np.vstack([applied @ np.vstack([points.T, np.ones(len(points))]), np.ones(len(points))])
    assert [frame["file_path"] for frame in meta["frames"]] == [f"images/{name}" for name in file_names(turn)]
    for frame, pixels in zip(meta["frames"], truth(turn, points), strict=True):
        x, y, z = (np.linalg.inv(frame["transform_matrix"]) @ world)[:3]
        found = [meta["cx"] + meta["fl_x"] * x / -z, meta["cy"] - meta["fl_y"] * y / -z]
        assert np.abs(np.stack(found, 1) - pixels).max() < 0.01
    cloud = trimesh.load(io.BytesIO(files[meta["ply_file_path"]]), file_type="ply")
    assert isinstance(cloud, trimesh.PointCloud) and 100 < len(cloud.vertices) <= POINTS
    ours = np.asarray(cloud.vertices) @ applied[:, :3]
    assert_is_the_ball(ours, np.asarray(cloud.colors)[:, :3])


def assert_is_the_ball(xyz: np.ndarray, rgb: np.ndarray) -> None:
    """Its top and bottom, which no view sees, are guessed."""
    sides = np.abs(xyz[:, 1]) < 0.1
    assert np.abs(np.linalg.norm(xyz, axis=1) - 0.2)[sides].max() < 0.05
    assert np.abs(rgb - (0.6 * xyz / 0.2 + 1) * 127.5)[sides].mean() < 12


def test_colmap(turn, shape, points, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    for name, data in colmap(turn, shape):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pycolmap.Reconstruction(tmp_path / "sparse/0")
        images = {image.name: image for image in model.images.values()}
        assert model.num_cameras() == 1 and sorted(images) == file_names(turn)
        for name, pixels in zip(file_names(turn), truth(turn, points), strict=True):
            found = np.array([images[name].project_point(point) for point in points])
            assert np.abs(found - pixels).max() < 0.01
        cloud = list(model.points3D.values())
        assert 100 < len(cloud) <= POINTS
        assert_is_the_ball(np.array([p.xyz for p in cloud]), np.array([p.color for p in cloud]))


def test_without_a_shape_there_are_no_points(turn):
    assert dict(colmap(turn, None))["sparse/0/points3D.txt"] == b""
    files = dict(nerfstudio(turn, None))
    assert list(files) == ["transforms.json"] and "ply_file_path" not in json.loads(files["transforms.json"])
