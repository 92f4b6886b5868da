"""Faces aligned by known cameras, embedded through insightface, and what is said of their agreement."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnxruntime import get_available_providers
from tiny import write_onnx, write_recogniser

from faces.landmarks import AVERAGE, ORDER, TEMPLATE, crops, face_points, mirrored, project, similarity
from faces.recogniser import CUDA, load_arcface, load_detector, onnx_providers, onnx_session
from filters.config import ArcFaceConfig
from filters.scorer import Subject
from filters.scorers.arcface import ArcFaceScorer
from geometry.cameras import orbit
from manifests.errors import UserError

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


def test_embeddings_are_insightface_s(tiny_arcface):
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    expected = ArcFaceONNX(str(tiny_arcface)).get_feat([face[..., ::-1] for face in faces])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(load_arcface(str(tiny_arcface)).embed(faces), expected, atol=1e-6)


def test_the_similarity_is_umeyama_s_and_exact_where_it_can_be():
    from skimage.transform import SimilarityTransform

    points = np.random.default_rng(0).normal(50, 20, (4, 5, 2)).astype(np.float32)
    points[0] = (TEMPLATE - 7) @ np.array([[0.0, 2.0], [-2.0, 0.0]], np.float32)
    found = similarity(points, TEMPLATE)
    moved = points[0] @ found[0, :, :2].T + found[0, :, 2]
    np.testing.assert_allclose(moved, TEMPLATE, atol=1e-3)
    near = TEMPLATE[None] + np.random.default_rng(1).normal(0, 5, (4, 5, 2)).astype(np.float32)
    for one, matrix in zip(near, similarity(near, TEMPLATE), strict=True):
        np.testing.assert_allclose(matrix, SimilarityTransform.from_estimate(one, TEMPLATE).params[:2], atol=1e-3)


def test_a_frontal_face_is_cut_upright_with_its_points_in_place():
    cameras = orbit(np.zeros(1), np.zeros(1))
    points = project(face_points({"facts": None}), cameras, 256)
    picture = np.zeros((1, 256, 256, 3), np.uint8)
    for x, y in points[0].round().astype(int):
        picture[0, y - 1 : y + 2, x - 1 : x + 2] = 255
    cut = crops(picture, points)[0, ..., 0]
    at = similarity(points, TEMPLATE)
    where = points[0] @ at[0, :, :2].T + at[0, :, 2]
    assert np.abs(where - TEMPLATE).max() < 6  # the average head is no one's template
    assert all(cut[round(float(y)), round(float(x))] > 128 for x, y in where)
    assert where[0, 0] < where[1, 0], "the subject's right eye is on the left"


def test_own_landmarks_win_over_the_average_head():
    own = {name: [0.0, 0.1 * i, 0.2] for i, name in enumerate(ORDER)}
    assert face_points({"facts": json.dumps({"landmarks": own})})[1].tolist() == pytest.approx([0, 0.1, 0.2])
    average = np.array([AVERAGE[name] for name in ORDER], np.float32)
    for facts in (None, "{}", json.dumps({"landmarks": {"nose": [0, 0, 0]}})):
        np.testing.assert_array_equal(face_points({"facts": facts}), average)


def test_the_mirror_image_is_where_the_camera_behind_sees_a_face():
    points = face_points({"facts": None})
    front = project(points, orbit(np.zeros(1), np.zeros(1)), 128)
    behind = project(mirrored(points), orbit(np.array([180.0]), np.zeros(1)), 128)
    np.testing.assert_allclose(behind, front, atol=1e-3)


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


def test_with_a_detector_only_found_faces_count(tiny_arcface, tmp_path, monkeypatch):
    class Detector:
        def detect(self, picture, det_thresh):
            if picture[0, 0, 2] == 1:
                return np.empty((0, 5)), np.empty((0, 5, 2))
            small, large = TEMPLATE / 4, TEMPLATE / 2
            return np.array([[0, 0, 9, 9, 0.9], [0, 0, 50, 50, 0.8]]), np.stack([small, large])

    file = write_recogniser(tmp_path / "detector.onnx")
    monkeypatch.setattr("filters.scorers.arcface.load_detector", lambda path, device: Detector())
    judge = scorer(tiny_arcface, detector=str(file))
    pictures = noise(5)
    pictures[:, 0, 0] = 0
    pictures[1, 0, 0] = 1
    azimuths = np.array([0, 20, -20, 40, 180], np.float32)
    faces = judge.prepare(subject(pictures, azimuths))
    assert faces.found.tolist() == [True, False, True, True, False]
    expected = crops(pictures[:1], TEMPLATE[None] / 2)
    np.testing.assert_array_equal(faces.front[0], expected[0])
    assert judge.score(faces)["detection_rate"] == 0.75
    assert judge.lineage.settings["detector_sha256"]


def iresnet50(path):
    """The graph of insightface's r50: 4 stages of 3, 4, 14 and 3 residual blocks; normalisation is left out."""
    rng, weights, nodes, count = np.random.default_rng(0), {}, [], 0

    def node(kind, *inputs, **attributes):
        nonlocal count
        count += 1
        nodes.append(helper.make_node(kind, list(inputs), [f"x{count}"], **attributes))
        return f"x{count}"

    def weight(*shape):
        name = f"w{len(weights)}"
        weights[name] = rng.standard_normal(shape, np.float32) * np.float32(0.5 / np.sqrt(np.prod(shape[1:])))
        return name

    def conv(x, a, b, size, stride=1):
        return node("Conv", x, weight(b, a, size, size), strides=[stride] * 2, pads=[size // 2] * 4)

    x, width = node("PRelu", conv("input", 3, 64, 3), weight(64, 1, 1)), 64
    for blocks, channels in ((3, 64), (4, 128), (14, 256), (3, 512)):
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            short = conv(x, width, channels, 1, stride) if block == 0 else x
            inner = node("PRelu", conv(x, width, channels, 3), weight(channels, 1, 1))
            x, width = node("Add", conv(inner, channels, channels, 3, stride), short), channels
    nodes.append(helper.make_node("Gemm", [node("Flatten", x), weight(512, 512 * 49)], ["embedding"], transB=1))
    return write_onnx(path, nodes, weights, ["n", 3, 112, 112], ["n", 512]), sum(w.size for w in weights.values())


def test_an_arcface_of_real_size(tmp_path):
    file, parameters = iresnet50(tmp_path / "r50.onnx")
    assert parameters == pytest.approx(43.6e6, rel=0.01)
    arcface = load_arcface(str(file))
    vectors = arcface.embed(noise(1).repeat(2, 1)[:, :112, :96].repeat(2, 2)[:, :, :112])
    assert vectors.shape == (1, 512)
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"arcface: there is no file .*; weights are never downloaded"):
        load_arcface(str(tmp_path / "none.onnx"))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match=r"text.onnx is not an ONNX model that runs here"):
        load_arcface(str(tmp_path / "text.onnx"))
    large = write_recogniser(tmp_path / "large.onnx", size=128)
    with pytest.raises(ValueError, match=r"reads \['n', 3, 128, 128\]; a recogniser reads \[batch, 3, 112, 112\]"):
        load_arcface(str(large))
    maps = write_onnx(tmp_path / "maps.onnx", [helper.make_node("Tanh", ["input"], ["embedding"])], {},
                      ["n", 3, 112, 112], ["n", 3, 112, 112])  # fmt: skip
    with pytest.raises(ValueError, match=r"writes .*; a recogniser writes \[batch, dimensions\]"):
        load_arcface(str(maps))
    with pytest.raises(ValueError, match="has 1 outputs; an SCRFD with key points has 9 or 15"):
        load_detector(str(large))
    fixed = onnx.load(str(write_recogniser(tmp_path / "fixed.onnx")))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(fixed, str(tmp_path / "fixed.onnx"))
    with pytest.raises(ValueError, match="reads batches of 8 only"):
        load_arcface(str(tmp_path / "fixed.onnx"))


def test_bad_settings():
    with pytest.raises(ValueError, match="the cone must end before the back begins"):
        ArcFaceConfig(max_turn=130.0)
    with pytest.raises(ValueError, match=r"--arcface.min-views is 1"):
        ArcFaceConfig(min_views=1)


def test_projection_of_other_resolutions_scales():
    points, cameras = face_points({"facts": None}), orbit(AZIMUTHS.astype(float), np.zeros(7))
    small, large = project(points, cameras, 128) + 0.5, project(points, cameras, 512) + 0.5
    torch.testing.assert_close(torch.from_numpy(small) * 4, torch.from_numpy(large), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_session_takes_the_threads_of_its_process(tiny_arcface, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert onnx_session(str(tiny_arcface), "cpu").get_session_options().intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


def test_the_device_as_onnxruntime_names_it():
    assert onnx_providers("cpu") == ["CPUExecutionProvider"]
    for device, index in (("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        assert onnx_providers(device) == [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


@pytest.mark.skipif(CUDA in get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_gpu_is_never_silently_the_cpu(tiny_arcface):
    with pytest.raises(UserError, match="--device is cuda:1, but this onnxruntime runs on the CPU only"):
        load_arcface(str(tiny_arcface), "cuda:1")
