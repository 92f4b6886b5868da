"""Identity metrics: the recogniser's own similarity, on procedural heads and the embedded recogniser."""

import numpy as np
import pytest
import torch
from turntable import in_bytes, turntable

from faces.models import ArcFace, load_arcface
from filters.config import ArcFaceConfig
from filters.scorer import Subject
from filters.scorers.arcface import ArcFaceScorer
from filters.scorers.clip_janus import load_clip
from infer.metrics.likeness import (
    DLIB_DISTANCE,
    FaceEmbedder,
    FaceEmbeddings,
    identity_consistency,
    identity_similarity,
    input_to_output,
    output_to_output,
    re_identification,
    similarity,
)
from weights.embedded import EMBEDDED

AZIMUTHS = (0.0, 30.0, 60.0, 150.0, 315.0)


@pytest.fixture(scope="module")
def arcface() -> ArcFace:
    return load_arcface(str(EMBEDDED / "arcface.onnx"))


def faces(arcface: ArcFace, seed: int) -> FaceEmbeddings:
    pictures, _, cameras = turntable(seed, AZIMUTHS, 128)
    return FaceEmbedder(arcface)(in_bytes(pictures), cameras)


def made(*vectors: list[float] | None) -> FaceEmbeddings:
    found = np.array([v is not None for v in vectors])
    return FaceEmbeddings(np.array([v or [np.nan, np.nan] for v in vectors], np.float32), found)


def test_similarity_is_insightface_s_own(arcface):
    one, other = faces(arcface, 52), faces(arcface, 53)
    found = identity_similarity(one, other)
    assert np.isnan(found).tolist() == [False, False, False, True, False]
    for i in (0, 1, 2, 4):
        assert found[i] == pytest.approx(arcface.model.compute_sim(one.embedding[i], other.embedding[i]), abs=1e-5)
    np.testing.assert_allclose(identity_similarity(one, one)[one.found], 1, atol=1e-5)
    assert np.nanmax(found) < 0.6 < np.nanmin(input_to_output(one.embedding[0], one))


def test_agreement_of_views_is_the_scorer_s(arcface):
    pictures, _, cameras = turntable(52, AZIMUTHS, 128)
    judge, azimuth = ArcFaceScorer(ArcFaceConfig(), "cpu"), np.array(AZIMUTHS, np.float32)
    row = {"identity": 0, "facts": "{}", "mesh": None}
    rgb = {"rgb": list(in_bytes(pictures))}
    expected = judge.score(judge.prepare(Subject(row, np.arange(5), azimuth, azimuth * 0, cameras, rgb)))
    found = identity_consistency(faces(arcface, 52), None)
    assert found.o2o == pytest.approx(expected["mean_cosine"], abs=1e-5)
    assert found.detection_rate == 0.8 and expected["detections"] == 4
    assert np.isnan(found.i2o) and np.isnan(found.i2o_counted)


def test_faces_that_are_not_there_are_left_out_or_counted():
    views = made([1.0, 0.0], [0.6, 0.8], None, [0.0, 2.0])
    source = np.array([3.0, 0.0], np.float32)
    np.testing.assert_allclose(input_to_output(source, views), [1, 0.6, np.nan, 0], atol=1e-6)
    np.testing.assert_allclose(sorted(output_to_output(views)), [0, 0.6, 0.8], atol=1e-6)
    found = identity_consistency(views, source)
    expected = (1.4 / 3, 1.6 / 3, 0.75, 1.4 / 6, 1.6 / 4)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    nobody = identity_consistency(made(None, None), source)
    assert np.isnan([nobody.o2o, nobody.i2o]).all() and tuple(nobody[2:]) == (0, 0, 0)


def test_re_identification_asks_the_true_view_where_the_face_is():
    true = made([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], None)
    found = re_identification(made([0.3, 0.4], [0.8, 0.0], None, [0.0, 0.0]), true, DLIB_DISTANCE)
    np.testing.assert_allclose(found.distance, [0.5, 0.8, np.nan, np.nan], atol=1e-6)
    np.testing.assert_array_equal(found.match, [1, 0, 0, np.nan])


def test_clip_similarity_is_that_of_the_model_it_is_given():
    clip = load_clip(f"local-dir:{EMBEDDED / 'clip'}")
    pictures = in_bytes(turntable(52, AZIMUTHS, 128)[0])

    def embed(pictures):
        return clip.pictures(clip.prepare(pictures)).numpy()

    vectors = torch.from_numpy(embed(pictures))
    expected = torch.nn.functional.cosine_similarity(vectors, vectors[:1]).numpy()
    found = similarity(embed, pictures, pictures[:1])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0] == pytest.approx(1, abs=1e-5) and found[3] < found[1]
    np.testing.assert_allclose(similarity(embed, pictures, pictures), 1, atol=1e-5)


class OneFace:
    """A detector that finds two faces in bright pictures, and none in dark ones."""

    def detect(self, picture, det_thresh):
        points = np.array([[38.0, 52], [74, 52], [56, 72], [42, 92], [71, 92]], np.float32)
        if picture.mean() < 128:
            return np.empty((0, 5)), np.empty((0, 5, 2))
        return np.array([[0, 0, 9, 9, 0.9], [0, 0, 90, 90, 0.8]]), np.stack([points + 30, points])


def test_a_detector_decides_which_views_hold_a_face_and_takes_the_largest(arcface):
    _, _, cameras = turntable(52, AZIMUTHS, 128)
    pictures = np.random.default_rng(0).integers(150, 256, (5, 128, 128, 3)).astype(np.uint8)
    pictures[1] = 0
    embedder = FaceEmbedder(arcface, OneFace())
    points, found = embedder.locate(pictures, cameras)
    assert found.tolist() == [True, False, True, True, True]
    assert points[0, 0].tolist() == [38, 52]
    result = embedder(pictures, cameras)
    assert result.found.tolist() == found.tolist()
    np.testing.assert_array_equal(np.isnan(result.embedding).all(1), ~found)
    np.testing.assert_allclose(np.linalg.norm(result.embedding[found], axis=1), 1, atol=1e-5)
