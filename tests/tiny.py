"""Weights too small to know anything, in the formats of the real ones."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_clip(folder: Path, config: dict, **changes) -> Path:
    import open_clip

    torch.manual_seed(0)
    weights = {k: v.contiguous() for k, v in open_clip.CLIP(**config).state_dict().items()}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**config, **changes}, "preprocess_cfg": {}})
    )
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def write_recogniser(path: Path, size: int = 112, dimensions: int = 32) -> Path:
    """One convolution and one matrix, in insightface's contract."""
    rng = np.random.default_rng(0)
    cells = size // 16
    weights = {
        "kernel": rng.normal(size=(8, 3, 16, 16)),
        "matrix": rng.normal(size=(8 * cells * cells, dimensions)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["maps"], strides=[16, 16]),
        helper.make_node("Tanh", ["maps"], ["bounded"]),
        helper.make_node("Flatten", ["bounded"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    return write_onnx(path, nodes, weights, ["n", 3, size, size], ["n", dimensions])


def write_onnx(path: Path, nodes: list, weights: dict[str, np.ndarray], shape_in: list, shape_out: list) -> Path:
    graph = helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path
