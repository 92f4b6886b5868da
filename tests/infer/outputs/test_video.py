"""Films are read back by other programs frame by frame."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence
from turns import ball_turn, head_turn

from infer.outputs.pictures import gif, mp4
from train.batch import to_bytes


@pytest.fixture(scope="module")
def turn():
    return head_turn()


@pytest.fixture(scope="module")
def truth(turn):
    return np.stack([to_bytes(view) for view in turn.rgb]).astype(int)


def test_gif(turn, truth):
    image = Image.open(io.BytesIO(gif(turn, 12.0)))
    assert image.info["loop"] == 0
    frames, durations = [], []
    for frame in ImageSequence.Iterator(image):
        frames.append(np.asarray(frame.convert("RGB")).astype(int))
        durations.append(frame.info["duration"])
    # A twelfth of a second is no whole number of hundredths; the turn takes its second all the same.
    assert sum(durations) == 1000 and set(durations) == {80, 90}
    assert np.abs(np.stack(frames) - truth).mean() < 3


def test_mp4(turn, truth, tmp_path):
    file = tmp_path / "turntable.mp4"
    file.write_bytes(mp4(turn, 12.0))
    film = cv2.VideoCapture(str(file))
    assert film.get(cv2.CAP_PROP_FPS) == 12
    frames = []
    while (read := film.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB).astype(int))
    film.release()
    assert np.abs(np.stack(frames) - truth).mean() < 6


def test_only_the_ring_at_eye_level_is_shown():
    turn = ball_turn([0, 90, 180, 270] * 2, [40] * 4 + [5] * 4, 32)
    assert Image.open(io.BytesIO(gif(turn, 10.0))).n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]
