"""The scores of the ArcFace scorer: agreement in the frontal cone, detections, and the mirror test."""

import numpy as np
import pytest
from tiny_faces import POINTS, half_side, mark, write_detector

from faces.landmarks import crops
from filters.config import ArcFaceConfig
from filters.scorer import Subject
from filters.scorers.arcface import ArcFaceScorer
from geometry.cameras import orbit

AZIMUTHS = np.array([0, 30, -45, 60, 90, 135, 180], np.float32)


def subject(pictures: np.ndarray, azimuths: np.ndarray = AZIMUTHS, facts: str = "{}") -> Subject:
    elevation = np.zeros_like(azimuths)
    row = {"identity": 0, "facts": facts, "mesh": None}
    cameras = orbit(azimuths.astype(float), elevation.astype(float))
    return Subject(row, np.arange(len(azimuths)), azimuths, elevation, cameras, {"rgb": list(pictures)})


def noise(views: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (views, 96, 96, 3), np.uint8)


def scorer(model, **settings) -> ArcFaceScorer:
    return ArcFaceScorer(ArcFaceConfig(str(model), **settings), "cpu")


def test_what_is_said_of_a_head(tiny_arcface):
    pictures = noise(len(AZIMUTHS))
    judge = scorer(tiny_arcface)
    assert judge.wants(AZIMUTHS, AZIMUTHS * 0).tolist() == [True, True, True, True, False, True, True]
    seen = judge.wants(AZIMUTHS, AZIMUTHS * 0)
    faces = judge.prepare(subject(pictures[seen], AZIMUTHS[seen]))
    found = judge.score(faces)
    front = judge.arcface.embed(faces.front)
    pairs = [float(front[i] @ front[j]) for i in range(4) for j in range(i)]
    assert found["mean_cosine"] == pytest.approx(np.mean(pairs), abs=1e-5)
    assert found["min_cosine"] == pytest.approx(min(pairs), abs=1e-5)
    order = [(i, j) for i in range(4) for j in range(i) if abs(AZIMUTHS[i] - AZIMUTHS[j]) > 60]
    far = [float(front[i] @ front[j]) for i, j in order]
    assert len(far) == 2 and found["far_cosine"] == pytest.approx(np.mean(far), abs=1e-5)
    assert found["detections"] == 4
    assert found["detection_rate"] == 1
    assert np.isnan(found["embedding"]).any(1).tolist() == [False] * 4 + [True] * 2
    assert found["agreement"][0] == pytest.approx(np.mean([float(front[0] @ front[j]) for j in (1, 2, 3)]), abs=1e-5)
    assert found["mirror_cosine"] == pytest.approx(float((judge.arcface.embed(faces.back) @ front.T).max()), abs=1e-6)


def test_the_same_face_behind_is_found_by_the_mirror_test(tiny_arcface):
    front = noise(1)
    azimuths = np.array([0, 20, 180], np.float32)
    sound = np.concatenate([front, noise(2, seed=1)])
    judge = scorer(tiny_arcface)
    assert judge.score(judge.prepare(subject(np.repeat(front, 3, 0), azimuths)))["mirror_cosine"] > 0.99
    assert judge.score(judge.prepare(subject(sound, azimuths)))["mirror_cosine"] < 0.9


def test_too_few_faces_are_nan_and_none_at_all_is_no_error(tiny_arcface):
    judge = scorer(tiny_arcface)
    for azimuths in ([0, 30, 180], [150, 180], [0]):
        azimuths = np.array(azimuths, np.float32)
        found = judge.score(judge.prepare(subject(noise(len(azimuths)), azimuths)))
        assert np.isnan(found["mean_cosine"])
    nothing = judge.score(judge.prepare(subject(noise(0), np.empty(0, np.float32))))
    assert nothing["detections"] == 0 and np.isnan(nothing["detection_rate"]) and np.isnan(nothing["mirror_cosine"])


def test_with_a_detector_only_found_faces_count(tiny_arcface, tmp_path):
    """Views of 640 px, in which the detector sees red squares as faces; the larger of two is the one that is embedded."""
    judge = scorer(tiny_arcface, detector=str(write_detector(tmp_path / "detector.onnx")))
    pictures = np.full((5, 640, 640, 3), 90, np.uint8)
    for i, small in ((0, 40), (2, None), (3, None)):
        mark(pictures[i], 9, 8, blue=150)
        if small is not None:
            mark(pictures[i], 2, 3, blue=small)
    faces = judge.prepare(subject(pictures, np.array([0, 20, -20, 40, 180], np.float32)))
    assert faces.found.tolist() == [True, False, True, True, False]
    points = (np.array([9, 8]) * 32 + POINTS * half_side(150)).astype(np.float32)
    expected = crops(pictures[:1], points[None])
    np.testing.assert_allclose(faces.front[0].astype(int), expected[0], atol=2)
    assert judge.score(faces)["detections"] == 3 and judge.score(faces)["detection_rate"] == 0.75
    assert judge.lineage.settings["detector_sha256"]


def test_bad_settings():
    with pytest.raises(ValueError, match="the first must be above 0 and below the second"):
        ArcFaceConfig(max_turn=130.0)
    with pytest.raises(ValueError, match=r"--arcface.min-views is 1"):
        ArcFaceConfig(min_views=1)
