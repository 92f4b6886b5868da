"""The pose that landmarks tell, and what is refused because of it."""

import numpy as np
import pytest
import torch

from faces.alignment import Frame, ffhq_frame
from faces.pose import CENTRE, HALF_SIDE, HeadPose, landmark_pose, refined, refusal, tddfa_pose
from geometry.cameras import spinmeround_rotation

UP = np.array([1.0, -1.0, 1.0])


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    angles = (torch.tensor([value], dtype=torch.float64) for value in (pitch, yaw, roll))
    return spinmeround_rotation(*angles)[0].numpy()


def mean_face() -> np.ndarray:
    """68 points roughly where insightface's mean face has them: y down, z out of the face."""
    points = np.random.default_rng(0).normal(0, 0.3, (68, 3))
    points[:, 2] = 0.5 - (points[:, 0] ** 2 + points[:, 1] ** 2)
    return points


def seen(face: np.ndarray, turn: np.ndarray, size: float, at: tuple[float, float]) -> np.ndarray:
    """The points in the pixels of a photo taken from far away; y down."""
    return size * (face * UP) @ turn.T * UP + [*at, 0.0]


def upright(side: float = 400.0, centre: tuple[float, float] = (300.0, 250.0)) -> Frame:
    return Frame(np.array(centre), np.array([side / 2, 0.0]), np.array([0.0, side / 2]))


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (-50, 10, 0), (0, -25, 0), (20, 5, 30), (-85, 0, -10)]
)
def test_landmarks_tell_the_turn_the_size_and_the_place(yaw, pitch, roll):
    turn, size, at = rotation(yaw, pitch, roll), 210.0, (310.0, 240.0)
    pose = landmark_pose(seen(mean_face(), turn, size, at), mean_face(), upright())
    np.testing.assert_allclose(pose.angles, (yaw, pitch, roll), atol=1e-6)
    np.testing.assert_allclose(pose.rotation, turn, atol=1e-9)
    assert pose.scale == pytest.approx(size * HALF_SIDE / 200)
    middle = seen(CENTRE * UP, turn, size, at)[:2]
    frame = refined(upright(), pose)
    np.testing.assert_allclose(frame.centre, middle, atol=1e-6)
    assert frame.side == pytest.approx(2 * size * HALF_SIDE)


def test_a_photo_held_askew_gives_the_same_head():
    """The frame turns with the eyes: the pose against it, and what it frames, do not change."""
    turn, tilt = rotation(25, -10, 0), np.radians(35)
    points = seen(mean_face(), turn, 200.0, (0.0, 0.0))
    askew = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    level = upright(centre=(10.0, -5.0))
    tilted = Frame(askew @ level.centre, askew @ level.right, askew @ level.down)
    rolled = np.column_stack([points[:, :2] @ askew.T, points[:, 2]])
    one, other = landmark_pose(points, mean_face(), level), landmark_pose(rolled, mean_face(), tilted)
    np.testing.assert_allclose(one.rotation, other.rotation, atol=1e-9)
    np.testing.assert_allclose(one.shift, other.shift, atol=1e-9)
    np.testing.assert_allclose(askew @ refined(level, one).quad.T, refined(tilted, other).quad.T, atol=1e-3)


def test_noise_of_the_landmarks_moves_it_little():
    points = seen(mean_face(), rotation(20, 5, 0), 200.0, (300.0, 250.0))
    noisy = points + np.random.default_rng(1).normal(0, 3, points.shape)
    found = landmark_pose(noisy, mean_face(), upright())
    assert np.abs(np.array(found.angles) - [20, 5, 0]).max() < 3 and found.scale == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-9)


def test_depths_are_not_read():
    points = seen(mean_face(), rotation(20, 5, 0), 200.0, (300.0, 250.0))
    flat = landmark_pose(points[:, :2], mean_face(), upright())
    np.testing.assert_allclose(flat.rotation, landmark_pose(points, mean_face(), upright()).rotation, atol=1e-12)


def test_both_providers_frame_one_head_alike():
    """A head of the Basel model, 120 mm for a unit of the mean face, seen by 3DDFA in the crop and by landmarks in a photo."""
    turn, frame, mm = rotation(-35, 8, 4), upright(), 1.55  # pixels of the photo for a millimetre
    depth, roi = 74_000.0, np.array([120.0, 110.0, 420.0, 410.0])
    at = np.array([300.0, 270.0])  # where the origin of the Basel model is seen
    to_crop = 511 / frame.side
    in_crop = (at - frame.centre) * to_crop + 255.5
    scale = mm / 1000 * to_crop * 120 / 300
    shift = np.array([(in_crop[0] - 120) * 120 / 300 + 1, 120 - (in_crop[1] - 110) * 120 / 300, -66.7])
    theirs = tddfa_pose(np.column_stack([turn * scale, shift]), roi, depth)
    # The same head by the mean face, whose CENTRE is the Basel origin moved by half the mean depth.
    moved = (turn @ [0, 0, depth / 2])[:2] * mm / 1000 * UP[:2]
    unit = mm * 120
    origin = at + moved - seen(CENTRE * UP, turn, unit, (0.0, 0.0))[:2]
    ours = landmark_pose(seen(mean_face(), turn, unit, (origin[0], origin[1])), mean_face(), frame)
    np.testing.assert_allclose(ours.rotation, theirs.rotation, atol=1e-6)
    assert ours.scale == pytest.approx(theirs.scale, rel=1e-6)
    np.testing.assert_allclose(ours.shift, theirs.shift, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"scale": 0.69}, "the head is 0.69 times as large as its eyes and mouth suggest; 0.7 to 1.3 works"),
        ({"scale": 1.31}, "the head is 1.31 times as large"),
        ({"scale": float("nan")}, "the head is nan times as large"),
        ({"rotation": rotation(0, 85, 0)}, "raised or lowered by 85 degrees; 80 or less works"),
        ({"rotation": rotation(120, 0, 0)}, "raised or lowered by 180 degrees"),
        ({"rotation": rotation(0, 0, -55)}, "tilted by 55 degrees; 50 or less works"),
        ({"shift": np.array([1.1, 0.0])}, "the middle of the head lies outside the square"),
        ({"shift": np.array([0.0, -1.1])}, "the middle of the head lies outside the square"),
        ({"rotation": rotation(89, 0, 0)}, ""),
    ],
)
def test_what_panohead_s_crop_leaves_out(change, says):
    pose = HeadPose(**{"rotation": np.eye(3), "scale": 1.0, "shift": np.zeros(2), **change})
    found = refusal(pose)
    assert says in found if says else found == ""
    assert "\n" not in found


def test_the_mean_face_of_insightface_is_framed_as_ffhq_frames_it():
    """Its own five points and its own pose: about the same square, the head's middle a little lower."""
    from insightface.data import get_object

    face = get_object("meanshape_68.pkl").astype(float)
    points = seen(face, np.eye(3), 150.0, (300.0, 300.0))
    eyes = [points[36:42].mean(0), points[42:48].mean(0)]
    frame = ffhq_frame(np.stack([*eyes, points[30], points[48], points[54]])[:, :2])
    pose = landmark_pose(points, face, frame)
    assert 0.85 < pose.scale < 1.0 and np.abs(pose.angles).max() < 2
    assert abs(pose.shift[0]) < 0.03 and -0.25 < pose.shift[1] < -0.1
