"""Recognisers and detectors through insightface and onnxruntime: the same numbers, and one line on files that are wrong."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnxruntime import get_available_providers
from tiny import write_onnx, write_recogniser

from faces.models import CUDA, load_arcface, load_detector, onnx_providers, onnx_session
from manifests.errors import UserError


@pytest.fixture(scope="module")
def tiny_arcface(tmp_path_factory):
    return write_recogniser(tmp_path_factory.mktemp("arcface") / "tiny.onnx")


def test_embeddings_are_insightface_s(tiny_arcface):
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    expected = ArcFaceONNX(str(tiny_arcface)).get_feat([face[..., ::-1] for face in faces])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(load_arcface(str(tiny_arcface)).embed(faces), expected, atol=1e-6)


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
    vectors = arcface.embed(np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), np.uint8))
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
