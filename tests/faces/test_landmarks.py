"""Landmarks of faces, from the camera, and the crops that they give."""

import json

import numpy as np
import pytest
import torch

from faces.landmarks import AVERAGE, ORDER, TEMPLATE, crops, face_points, mirrored, project, similarity_transform
from geometry.cameras import orbit

AZIMUTHS = np.array([0, 30, -45, 60, 90, 135, 180], np.float32)


def test_the_similarity_is_umeyama_s_and_exact_where_it_can_be():
    from skimage.transform import SimilarityTransform

    points = np.random.default_rng(0).normal(50, 20, (4, 5, 2)).astype(np.float32)
    points[0] = (TEMPLATE - 7) @ np.array([[0.0, 2.0], [-2.0, 0.0]], np.float32)
    found = similarity_transform(points, TEMPLATE)
    moved = points[0] @ found[0, :, :2].T + found[0, :, 2]
    np.testing.assert_allclose(moved, TEMPLATE, atol=1e-3)
    near = TEMPLATE[None] + np.random.default_rng(1).normal(0, 5, (4, 5, 2)).astype(np.float32)
    for one, matrix in zip(near, similarity_transform(near, TEMPLATE), strict=True):
        np.testing.assert_allclose(matrix, SimilarityTransform.from_estimate(one, TEMPLATE).params[:2], atol=1e-3)


def test_a_frontal_face_is_cut_upright_with_its_points_in_place():
    cameras = orbit(np.zeros(1), np.zeros(1))
    points = project(face_points(), cameras, 256)
    picture = np.zeros((1, 256, 256, 3), np.uint8)
    for x, y in points[0].round().astype(int):
        picture[0, y - 1 : y + 2, x - 1 : x + 2] = 255
    cut = crops(picture, points)[0, ..., 0]
    at = similarity_transform(points, TEMPLATE)
    where = points[0] @ at[0, :, :2].T + at[0, :, 2]
    assert np.abs(where - TEMPLATE).max() < 6  # the average head is no one's template
    assert all(cut[round(float(y)), round(float(x))] > 128 for x, y in where)
    assert where[0, 0] < where[1, 0], "the subject's right eye is on the left"


def test_own_landmarks_win_over_the_average_head():
    own = {name: [0.0, 0.1 * i, 0.2] for i, name in enumerate(ORDER)}
    assert face_points(json.dumps({"landmarks": own}))[1].tolist() == pytest.approx([0, 0.1, 0.2])
    average = np.array([AVERAGE[name] for name in ORDER], np.float32)
    for facts in (None, "{}", json.dumps({"landmarks": {"nose": [0, 0, 0]}})):
        np.testing.assert_array_equal(face_points(facts), average)


def test_the_mirror_image_is_where_the_camera_behind_sees_a_face():
    points = face_points()
    front = project(points, orbit(np.zeros(1), np.zeros(1)), 128)
    behind = project(mirrored(points), orbit(np.array([180.0]), np.zeros(1)), 128)
    np.testing.assert_allclose(behind, front, atol=1e-3)


def test_projection_of_other_resolutions_scales():
    points, cameras = face_points(), orbit(AZIMUTHS.astype(float), np.zeros(7))
    small, large = project(points, cameras, 128) + 0.5, project(points, cameras, 512) + 0.5
    torch.testing.assert_close(torch.from_numpy(small) * 4, torch.from_numpy(large), atol=1e-3, rtol=1e-5)
