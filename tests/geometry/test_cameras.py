"""Cameras against PanoHead's and SpinMeRound's own numbers, and every convention there and back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conventions import from_colmap, from_opengl, panohead_v
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from geometry.cameras import (
    Cameras,
    azimuth_elevation,
    eg3d_labels,
    focal_from_fov,
    from_eg3d_labels,
    from_view_rotation,
    intrinsics,
    orbit,
    panohead_look_at,
    spinmeround_rotation,
    to_colmap,
    to_opengl,
)
from geometry.directions import RADIUS, wrapped
from geometry.raymaps import ray_maps
from geometry.rays import rays

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "geometry_cameras.safetensors")
azimuths = st.floats(-179.9, 179.9)
elevations = st.floats(-85, 85)


def one(azimuth: float, elevation: float) -> Cameras:
    return orbit(np.array([azimuth], dtype=float), np.array([elevation], dtype=float))


def off_axis(azimuth: float, elevation: float) -> Cameras:
    """A camera that no symmetry helps: it looks past the centre, with unequal focals and a shifted principal point."""
    h = torch.tensor([math.radians(azimuth)])
    v = panohead_v(torch.tensor([float(elevation)]))
    c2w = panohead_look_at(h, v, torch.tensor([0.05, -0.1, 0.2]), radius=2.1)
    return Cameras(c2w, torch.tensor([[[4.0, 0.0, 0.45], [0.0, 3.5, 0.6], [0.0, 0.0, 1.0]]]))


def assert_same(a: Cameras, b: Cameras, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.c2w, b.c2w, atol=atol, rtol=0)
    torch.testing.assert_close(a.K, b.K, atol=atol, rtol=0)


def test_panohead_look_at_matches_the_official_sampler():
    h, v, pivots = (GOLDEN[f"look_at.{name}"] for name in ("h", "v", "pivot"))
    assert len(h) == 84
    ours = [panohead_look_at(h[i : i + 1], v[i : i + 1], pivots[i]) for i in range(len(h))]
    torch.testing.assert_close(torch.cat(ours), GOLDEN["look_at.c2w"], atol=1e-6, rtol=0)


def test_intrinsics_match_the_official_field_of_view():
    ours = torch.cat([intrinsics(focal_from_fov(degrees.item())) for degrees in GOLDEN["fov.degrees"]])
    torch.testing.assert_close(ours, GOLDEN["fov.K"], atol=1e-6, rtol=0)


def test_eg3d_labels_match_the_official_ones():
    yaw, pitch = torch.deg2rad(GOLDEN["rays8.yaw_pitch"]).unbind(-1)
    c2w = panohead_look_at(math.pi / 2 + yaw, math.pi / 2 + pitch, torch.zeros(3))
    labels = eg3d_labels(Cameras(c2w, intrinsics(focal_from_fov(18.837), len(c2w))))
    torch.testing.assert_close(labels, GOLDEN["rays8.labels"], atol=1e-6, rtol=0)


def test_spinmeround_rotations_match_the_official_labels():
    rotation = spinmeround_rotation(*GOLDEN["spinmeround.pitch_yaw_roll"].double().unbind(-1))
    cameras = from_view_rotation(rotation)
    torch.testing.assert_close(eg3d_labels(cameras), GOLDEN["spinmeround.labels"], atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras.view_rotation, rotation)


@given(azimuths, elevations)
def test_panohead_v_undoes_the_warp(azimuth: float, elevation: float):
    h = torch.tensor([math.pi / 2 + math.radians(azimuth)], dtype=torch.float64)
    c2w = panohead_look_at(h, panohead_v(torch.tensor([elevation], dtype=torch.float64)), torch.zeros(3).double())
    torch.testing.assert_close(c2w.float(), one(azimuth, elevation).c2w, atol=1e-5, rtol=0)


@given(azimuths, elevations)
def test_orbit_and_azimuth_elevation_are_inverse(azimuth: float, elevation: float):
    a, e = azimuth_elevation(one(azimuth, elevation).c2w)
    assert a.item() == pytest.approx(azimuth, abs=1e-3)
    assert e.item() == pytest.approx(elevation, abs=1e-3)


def test_orbit_has_no_camera_above_the_head():
    with pytest.raises(ValueError, match="elevation 90"):
        orbit(np.array([0.0, 0.0]), np.array([10.0, 90.0]))


@given(azimuths, elevations)
def test_spinmeround_yaw_then_pitch_is_an_orbit(azimuth: float, elevation: float):
    zero = torch.zeros(1)
    pitch = spinmeround_rotation(torch.tensor([elevation]), zero, zero)
    yaw = spinmeround_rotation(zero, torch.tensor([azimuth]), zero)
    assert_same(from_view_rotation(pitch @ yaw), one(azimuth, elevation))


@given(azimuths, elevations)
def test_opengl_round_trip(azimuth: float, elevation: float):
    camera = off_axis(azimuth, elevation)
    assert_same(from_opengl(to_opengl(camera), camera.K), camera)


def test_the_frontal_opengl_camera_is_a_translation():
    expected = torch.eye(4)
    expected[2, 3] = RADIUS
    torch.testing.assert_close(to_opengl(one(0, 0))[0], expected)
    torch.testing.assert_close(one(0, 0).view_rotation[0], torch.eye(3))


@given(azimuths, elevations)
def test_colmap_round_trip(azimuth: float, elevation: float):
    camera = off_axis(azimuth, elevation)
    quaternions, translations, pinhole = to_colmap(camera, 640)
    assert quaternions[0, 0] >= 0
    assert_same(from_colmap(quaternions, translations, pinhole, 640), camera)
    assert_same(from_colmap(-quaternions, translations, pinhole, 640), camera)


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda axis: math.hypot(*axis) > 0.1), st.floats(0, math.pi))
def test_colmap_quaternions_are_axis_and_half_angle(axis: tuple[float, float, float], angle: float):
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    c2w = torch.eye(4, dtype=torch.float64)[None].clone()
    c2w[0, :3, :3] = torch.linalg.matrix_exp(angle * cross).T
    quaternion = to_colmap(Cameras(c2w, intrinsics().double()), 512)[0][0]
    cosine = torch.tensor([math.cos(angle / 2)], dtype=torch.float64)
    expected = torch.cat([cosine, math.sin(angle / 2) * torch.stack([x, y, z])])
    # A half turn about an axis is a half turn about its opposite.
    assert abs((quaternion * expected).sum().item()) == pytest.approx(1, abs=1e-9)


def test_a_colmap_camera_projects_to_the_same_pixel():
    camera = off_axis(37, -12)
    quaternion, translation, pinhole = (x[0] for x in to_colmap(camera, 512))
    point = torch.tensor([0.1, 0.2, -0.3])
    w, xyz = quaternion[0], quaternion[1:]
    rotated = point + 2 * torch.linalg.cross(xyz, torch.linalg.cross(xyz, point) + w * point)
    x, y, z = rotated + translation
    fx, fy, cx, cy = pinhole
    ours = camera.project(point[None], 512)[0, 0]
    torch.testing.assert_close(ours, torch.stack([fx * x / z + cx, fy * y / z + cy, z]), atol=1e-3, rtol=0)


@given(azimuths, elevations)
def test_eg3d_round_trip(azimuth: float, elevation: float):
    camera = off_axis(azimuth, elevation)
    assert_same(from_eg3d_labels(eg3d_labels(camera)), camera, atol=0)


def test_the_picture_is_the_right_way_up():
    """Seen from the front, the subject's left (+x) is on the right of the picture and its crown (+y) above."""
    points = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.5]])
    centre, left, crown, nose = one(0, 0).project(points, 512)[0]
    torch.testing.assert_close(centre, torch.tensor([256.0, 256.0, RADIUS]))
    assert left[0] > 256
    assert left[1] == pytest.approx(256)
    assert crown[1] < 256
    assert crown[0] == pytest.approx(256)
    assert nose[2].item() == pytest.approx(RADIUS - 0.5)


def test_azimuth_grows_to_the_left_of_the_subject_and_elevation_upwards():
    side, above = orbit(np.array([90.0, 0.0]), np.array([0.0, 30.0])).positions
    torch.testing.assert_close(side, torch.tensor([RADIUS, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(above, RADIUS * torch.tensor([0.0, 0.5, math.sqrt(0.75)]), atol=1e-6, rtol=0)


def test_w2c_is_the_inverse():
    camera = off_axis(-130, 40)
    torch.testing.assert_close(camera.w2c @ camera.c2w, torch.eye(4)[None], atol=1e-6, rtol=0)


def test_orbit_takes_angles_of_any_precision():
    angles = np.array([10.0, -170.0])
    single = orbit(angles.astype(np.float32), np.zeros(2, np.float32))
    torch.testing.assert_close(single.c2w, orbit(angles, np.zeros(2)).c2w)


def test_cameras_of_any_batch_shape_equal_the_flat_ones():
    """Two scenes of three views: every property and projection, and rays and ray maps of them."""
    azimuth, elevation = np.linspace(-170, 170, 6), np.linspace(-40, 40, 6)
    flat = orbit(azimuth, elevation, radius=2.0, focal=3.0)
    nested = Cameras(flat.c2w.unflatten(0, (2, 3)), flat.K.unflatten(0, (2, 3)))
    points = torch.linspace(-0.4, 0.4, 12).reshape(4, 3)

    def everything(cameras: Cameras) -> list[Tensor]:
        views = [cameras.positions, cameras.w2c, cameras.view_rotation, cameras.pixel_K(64), to_opengl(cameras)]
        rotation = cameras.view_rotation
        around = from_view_rotation(rotation, 2.0, 3.0)
        maps = [ray_maps(rotation, 4, mode, 15, 8) for mode in ("released", "geometric")]
        return [*views, cameras.project(points, 64), *rays(cameras, 8), *maps, around.c2w, around.K]

    for one, other in zip(everything(nested), everything(flat), strict=True):
        assert one.shape[:2] == (2, 3) and one.shape[2:] == other.shape[1:]
        # Matrix products of other batch shapes may round otherwise, which the octaves of ray maps multiply.
        torch.testing.assert_close(one.flatten(0, 1), other, atol=2e-2, rtol=0)
    assert [angle.shape for angle in azimuth_elevation(nested.c2w)] == [(2, 3), (2, 3)]
    assert len(nested) == 2 and len(nested[[1]].c2w[0]) == 3


def test_wrapped_angles():
    assert wrapped(np.array([-180.0, 180.0, 190.0, -725.0])).tolist() == [-180.0, -180.0, -170.0, -5.0]
    assert wrapped(540) == -180
