"""Normals there and back: between frames, and through 8-bit pictures."""

import numpy as np
import pytest

from geometry.cameras import orbit
from geometry.meshes import decode_normals, encode_normals, unit


def directions(n: int) -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32))


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between unit vectors, exact for small angles."""
    return np.degrees(2 * np.arcsin(np.minimum(np.linalg.norm(a - b, axis=-1) / 2, 1)))


def test_a_picture_of_normals_is_within_four_tenths_of_a_degree():
    normals = directions(1_000_000)
    decoded = decode_normals(encode_normals(normals))
    error = angles(decoded, normals)
    assert error.max() < 0.4
    assert error.mean() < 0.2
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=-1), 1, atol=1e-6)


def test_the_colours_of_the_axes():
    axes = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]).astype(np.float32)
    expected = [(255, 128, 128), (128, 255, 128), (128, 128, 255), (0, 128, 128), (128, 0, 128), (128, 128, 0)]
    np.testing.assert_array_equal(encode_normals(axes), [*expected, (128, 128, 128)])


def test_rounding_to_the_nearest_colour():
    step = 1 / 127.5
    components = np.array([0.49, 0.51, -0.49, -0.51], dtype=np.float32) * step + 0.5 * step
    colours = encode_normals(np.stack([components] * 3, axis=-1))[:, 0]
    np.testing.assert_array_equal(colours, [128, 129, 128, 127])


def test_background_stays_background():
    image = np.zeros((4, 4, 3), dtype=np.float32)
    image[1:3, 1:3] = directions(4).reshape(2, 2, 3)
    decoded = decode_normals(encode_normals(image))
    np.testing.assert_array_equal(decoded.any(-1), image.any(-1))


def test_zero_has_no_direction():
    np.testing.assert_array_equal(unit(np.array([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])), [[0, 0, 0], [0, 0.6, 0.8]])


def test_a_normal_towards_the_camera_is_plus_z():
    cameras = orbit(np.array([0.0, 90.0, -130.0]), np.array([0.0, 0.0, 35.0]))
    for position, rotation in zip(cameras.positions.numpy(), cameras.view_rotation.numpy(), strict=True):
        towards = unit(position)
        np.testing.assert_allclose(rotation @ towards, [0, 0, 1], atol=1e-6)
        assert rotation[1, 1] == pytest.approx(np.hypot(towards[0], towards[2]), abs=1e-6)
