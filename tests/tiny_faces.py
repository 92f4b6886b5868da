"""A face detector and a landmark model in insightface's contracts, too small to know a face: they see red squares."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FACE = (255, 0)
"""Red and green of a square of 32 pixels on the grid of 32 that is a face; its blue says how large."""

POINTS = np.array([[-0.4, -0.3], [0.4, -0.3], [0.0, 0.1], [-0.3, 0.5], [0.3, 0.5]])
"""The five points, from the square's upper left corner, in half sides of the box around it."""


def half_side(blue: int) -> float:
    """Half the side of the box around a face, in pixels of a picture of 640."""
    return 32 * 2 * ((blue - 127.5) / 128 + 1)


def mark(picture: np.ndarray, column: int, row: int, blue: int = 128) -> np.ndarray:
    """Put a face at a cell of 32 pixels."""
    picture[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = (*FACE, blue)
    return picture


def write_detector(path: Path) -> Path:
    """An SCRFD of three strides with key points, of which the coarsest sees."""
    weights = {
        "red_minus_green": np.array([0.5, -0.5, 0.0]).reshape(1, 3, 1, 1),
        "blue": np.array([0.0, 0.0, 2.0]).reshape(1, 3, 1, 1),
        "two": np.array([2.0]),
        "box": np.ones((1, 4)),
        "points": POINTS.reshape(1, 10),
    }
    shapes = {"cells_1": [-1, 1], "cells_4": [-1, 4], "cells_10": [-1, 10]}
    nodes, names = [], {"score": [], "box": [], "points": []}
    for stride in (8, 16, 32):
        s = str(stride)
        weights[f"gain_{s}"] = np.array([1.0 if stride == 32 else 0.0])
        nodes += [
            helper.make_node("AveragePool", ["input"], [f"mean_{s}"], kernel_shape=[stride] * 2, strides=[stride] * 2),
            helper.make_node("Conv", [f"mean_{s}", "red_minus_green"], [f"face_{s}"]),
            helper.make_node("Mul", [f"face_{s}", f"gain_{s}"], [f"sure_{s}"]),
            helper.make_node("Reshape", [f"sure_{s}", "cells_1"], [f"first_{s}"]),
            helper.make_node("Sub", [f"first_{s}", f"first_{s}"], [f"second_{s}"]),
            helper.make_node("Concat", [f"first_{s}", f"second_{s}"], [f"both_{s}"], axis=1),
            helper.make_node("Reshape", [f"both_{s}", "cells_1"], [f"score_{s}"]),
            helper.make_node("Conv", [f"mean_{s}", "blue"], [f"size_{s}"]),
            helper.make_node("Reshape", [f"size_{s}", "cells_1"], [f"flat_{s}"]),
            helper.make_node("Add", [f"flat_{s}", "two"], [f"half_{s}"]),
        ]
        for name, width in (("box", 4), ("points", 10)):
            nodes += [
                helper.make_node("Mul", [f"half_{s}", name], [f"{name}_one_{s}"]),
                helper.make_node("Concat", [f"{name}_one_{s}"] * 2, [f"{name}_two_{s}"], axis=1),
                helper.make_node("Reshape", [f"{name}_two_{s}", f"cells_{width}"], [f"{name}_{s}"]),
            ]
        for name in names:
            names[name].append(f"{name}_{s}")
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n_{name}", width])
        for kind, width in (("score", 1), ("box", 4), ("points", 10))
        for name in names[kind]
    ]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants += [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()]
    return _write(path, nodes, [1, 3, "h", "w"], outputs, constants)


def write_landmarks(path: Path, points: np.ndarray) -> Path:
    """A 1k3d68 that answers one face: n points in half crops from the middle, the last 68 of 1103."""
    answer = np.zeros((1103, 3), np.float32)
    answer[-len(points) :] = points
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "mean"], ["zero"]),
        helper.make_node("Add", ["zero", "answer"], ["landmarks"]),
    ]
    outputs = [helper.make_tensor_value_info("landmarks", TensorProto.FLOAT, ["n", 3309])]
    return _write(path, nodes, ["n", 3, 192, 192], outputs, [numpy_helper.from_array(answer.reshape(1, -1), "answer")])


def _write(path: Path, nodes: list, shape: list, outputs: list, constants: list) -> Path:
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "faces", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
