"""The crop of PanoHead's data, against what its official script gives."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from faces.alignment import SIZE, Frame, crop, crop_over_white, ffhq_frame, in_crop, over_white, padded_crop
from faces.pose import HeadPose, refined, tddfa_pose
from geometry.cameras import eg3d_labels


@pytest.fixture(scope="module")
def cases(golden) -> dict:
    return json.loads((golden / "spinmeround" / "panohead" / "crop_cases.json").read_text())


@pytest.fixture(scope="module")
def pixels(golden) -> dict:
    return load_file(golden / "spinmeround" / "panohead" / "panohead_cameras_and_crops.safetensors")


def photo() -> np.ndarray:
    """The picture of the golden cases: two ramps and a wave."""
    y, x = np.mgrid[:700, :600]
    return np.stack([x * 255 / 599, y * 255 / 699, 127 + 100 * np.sin(x / 30) * np.cos(y / 40)], -1).astype(np.uint8)


def pose_of(case: dict) -> HeadPose:
    return tddfa_pose(np.array(case["param12"]).reshape(3, 4), np.array(case["roi"]), case["bfm_u_z_mean"])


def test_the_first_square_is_ffhq_s(cases):
    frame = ffhq_frame(np.array(cases["landmarks5"]))
    np.testing.assert_allclose(frame.quad, cases["quad_ffhq"], atol=1e-2)
    np.testing.assert_allclose(np.concatenate([frame.centre, frame.right, frame.down]),
                               np.concatenate([cases["c"], cases["x"], cases["y"]]), atol=1e-9)  # fmt: skip
    last = SIZE - 1
    corners = np.array([[0, 0], [0, last], [last, last]], np.float32)
    np.testing.assert_allclose(
        cv2.getAffineTransform(frame.quad[:3], corners), cases["affine_first_crop_512"], atol=1e-4
    )


@pytest.mark.parametrize("index", range(6))
def test_the_refined_square_the_angles_and_the_camera(cases, index):
    case = cases["cases"][index]
    pose = pose_of(case)
    frame = refined(ffhq_frame(np.array(cases["landmarks5"])), pose)
    np.testing.assert_allclose(frame.quad, case["quad"], atol=1e-2)
    np.testing.assert_allclose(pose.angles, case["pose_yaw_pitch_roll"], atol=1e-4)
    np.testing.assert_allclose(eg3d_labels(pose.camera)[0], case["label25"], atol=1e-5)


@pytest.mark.parametrize("number", range(3))
def test_the_cut_with_its_margins(cases, pixels, number):
    frame = refined(ffhq_frame(np.array(cases["landmarks5"])), pose_of(cases["cases"][2 * number]))
    found = padded_crop(photo(), frame)
    assert list(found.shape) == cases["cases"][2 * number]["out_shape"]
    expected = pixels[f"case{number}.crop_padd_563_to_141_every4"].astype(int)
    assert np.abs(found[::4, ::4] - expected).mean() <= 2


def square(side: float, angle: float = 0.0, centre: tuple[float, float] = (350.0, 300.0)) -> Frame:
    right = side / 2 * np.array([np.cos(angle), np.sin(angle)])
    return Frame(np.array(centre), right, right[::-1] * [-1, 1])


def dots(points: np.ndarray, size: int = 700) -> np.ndarray:
    """A white picture with a soft black dot at each point."""
    picture = np.full((size, size), 255.0)
    y, x = np.mgrid[:size, :size]
    for px, py in points:
        picture -= 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 50)
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


@pytest.mark.parametrize(("side", "angle"), [(300, 0.0), (400, 0.4), (600, -0.2)])
def test_points_are_followed_into_the_cut(side, angle):
    frame = square(side, angle)
    points = np.array([[330.0, 280.0], [400.0, 330.0]])
    found = 255.0 - crop(dots(points), frame)[..., 0]
    for x, y in in_crop(points, frame):
        around = found[int(y) - 12 : int(y) + 14, int(x) - 12 : int(x) + 14]
        rows, columns = np.mgrid[int(y) - 12 : int(y) + 14, int(x) - 12 : int(x) + 14]
        assert abs((rows * around).sum() / around.sum() - y) < 0.5
        assert abs((columns * around).sum() / around.sum() - x) < 0.5


def test_margins_are_above_and_beside():
    frame = square(512)
    np.testing.assert_allclose(in_crop(frame.quad, frame)[0], [22.7, 46.3], atol=0.1)
    np.testing.assert_allclose(in_crop(frame.quad, frame)[2], [487.4, 511.0], atol=0.1)


def test_a_fine_photo_is_averaged_before_it_is_cut():
    """Stripes of a pixel become grey: they would alias if Lanczos alone read them."""
    stripes = np.zeros((4000, 4000, 3), np.uint8)
    stripes[:, ::2] = 255
    found = crop(stripes, square(3600, centre=(2000.0, 2100.0)))
    assert found.std() < 8 and found.mean() == pytest.approx(127, abs=2)


def test_beyond_the_photo_is_its_blurred_mirror_image():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (400, 400, 3), np.uint8)
    found = crop(noise, square(400, centre=(380.0, 200.0)))
    assert found[100:400, :200].std() > 40 and found[100:400, 350:480].std() < 25


def test_a_photo_without_a_background_lies_over_white_and_ends_at_its_border():
    rgb, alpha = np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400), np.uint8)
    rgb[alpha == 0] = (255, 0, 0)  # what a transparent pixel hides must not show
    rgb[100:, 100:300], alpha[100:, 100:300] = (0, 0, 200), 255
    found, opaque = crop_over_white(rgb, alpha, square(400, centre=(200.0, 260.0)))
    inside, outside = opaque > 250, opaque < 5
    assert inside.mean() > 0.2 and (np.abs(found[inside] - [0, 0, 200.0]) <= 12).all()
    assert (found[outside] == 255).mean() > 0.99 and (found[outside] > 240).all()
    assert (opaque[-30:] < 5).all(), "nothing is below the photo"


def test_over_white_is_linear():
    rgb = np.array([[[0, 100, 255]]], np.uint8)
    for alpha, expected in ((0, [255, 255, 255]), (255, [0, 100, 255]), (51, [204, 224, 255])):
        assert over_white(rgb, np.array([[alpha]], np.uint8)).tolist() == [[expected]]


def test_points_that_coincide_give_no_square():
    assert ffhq_frame(np.zeros((5, 2))).side == 0


def test_the_camera_is_that_of_the_rotation():
    pose = HeadPose(np.eye(3), 1.0, np.zeros(2))
    torch.testing.assert_close(pose.camera.positions[0], torch.tensor([0.0, 0.0, 2.7]))
