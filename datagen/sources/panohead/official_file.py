"""Reads the generator of an official .pkl: weights, constructor arguments, rendering options.

The file is a pickle of whole modules, source code included; `docs/panohead.md` has its format. Nothing of it is run:
`pickles.parse` describes it, and what a generator is made of is taken from the description, every bound checked.
"""

import io
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from datagen.sources.panohead.config import PLANE_AXES
from datagen.sources.panohead.pickles import Call, Global, Persistent, parse
from manifests.errors import UserError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_MODULES, _MAX_DEPTH, _MAX_VALUES = 10_000, 16, 10_000

_MODULE = "torch_utils.persistence._reconstruct_persistent_obj"
_STORAGE = "torch.storage._load_from_bytes"
_TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict"}
_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_ALLOWED = {
    *(_MODULE, _STORAGE, "numpy.dtype", "_codecs.encode", "torch.device", "torch.Size"),
    *(*_TENSORS, *_PARAMETERS, *_DICTS, *_SCALARS),
}
# Modules that are pickled by name; what is not the generator's is described and then left aside.
_INERT = ("torch.nn.modules.", "training.", "torch_utils.")

_DTYPES = {
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.HalfStorage": np.float16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
}


def read_pickle(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description of the generator G_ema, as JSON has it, and its weights under their official names.

    Raises:
        ValueError: the file is damaged, holds no generator, or asks for what no checkpoint needs.
    """
    with path.open("rb") as file:
        top = parse(file, lambda name: name in _ALLOWED or name.startswith(_INERT), _inspect)
    if not isinstance(top, dict) or "G_ema" not in top:
        raise UserError("not an official checkpoint: it has no G_ema")
    state = _state_dict(top["G_ema"], path.stat().st_size)
    generator = _module(top["G_ema"])
    if generator.get("_init_args"):
        raise UserError("its generator was built with positional arguments")
    official = {
        "family": "spherehead" if any(key.startswith("ConvA.") for key in state) else "panohead",
        "init_kwargs": _plain(generator.get("_init_kwargs")),
        # The options in force: those the generator was built with may have been changed since.
        "rendering_kwargs": _plain(generator.get("rendering_kwargs")),
        "attributes": {
            "neural_rendering_resolution": _plain(generator.get("neural_rendering_resolution")),
            "plane_axes": _plane_axes(generator),
        },
    }
    return official, state


def _inspect(call: Call) -> None:
    # Also those storages that nothing here reads: a file with a hostile one is refused as a whole.
    if call.function.name == _STORAGE:
        _storage(call)


def _module(node: Any) -> dict[str, Any]:
    """The attributes of a module: one of the official persistent classes, or a plain one pickled by name."""
    if isinstance(node, Call) and node.function.name == _MODULE and len(node.arguments) == 1:
        meta = node.arguments[0]
        state = meta.get("state") if isinstance(meta, dict) and meta.get("type") == "class" else None
    else:
        state = node.state if isinstance(node, Call) and node.function.name.startswith(_INERT) else None
    if not isinstance(state, dict):
        raise UserError(f"its generator holds a {_describe(node)} where a module should be")
    return state


def _describe(node: Any) -> str:
    return node.function.name if isinstance(node, Call) else type(node).__name__


def _items(node: Any) -> dict[Any, Any]:
    """A dict, or one of its official subclasses."""
    if isinstance(node, Call) and node.function.name in _DICTS:
        return node.items
    if not isinstance(node, dict):
        raise UserError(f"its generator holds a {_describe(node)} where a dict should be")
    return node


def _state_dict(root: Any, most: int) -> dict[str, Tensor]:
    """Parameters and persistent buffers under their official names, at most `most` numbers."""
    state: dict[str, Tensor] = {}
    waiting, seen = [("", root, 0)], 0
    while waiting:
        prefix, node, depth = waiting.pop()
        seen += 1
        if seen > _MAX_MODULES or depth > _MAX_DEPTH:
            raise UserError("its generator has too many modules, or they are nested too deeply")
        module = _module(node)
        skipped = module.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, value in _items(module.get(kind, {})).items():
                if value is not None and not (kind == "_buffers" and isinstance(skipped, set) and name in skipped):
                    state[f"{prefix}{name}"] = _tensor(value)
                    most -= state[f"{prefix}{name}"].numel()
                    if most < 0:
                        raise UserError("its generator has more weights than the file has bytes")
        for name, child in _items(module.get("_modules", {})).items():
            if child is not None:
                waiting.append((f"{prefix}{name}.", child, depth + 1))
    return state


def _tensor(node: Any) -> Tensor:
    """The tensor of a described rebuilding, in single precision, every bound checked."""
    if isinstance(node, Call) and node.function.name in _PARAMETERS and node.arguments:
        return _tensor(node.arguments[0])
    if not (isinstance(node, Call) and node.function.name in _TENSORS and len(node.arguments) >= 4):
        _refuse(node)
    storage, offset, size, stride = node.arguments[:4]
    if not (_are_counts([offset]) and _are_counts(size) and _are_counts(stride) and len(size) == len(stride)):
        raise UserError("a tensor without proper size and strides")
    values = _storage(storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # No tensor of a checkpoint repeats elements, so one larger than its storage would only be a memory bomb.
    if math.prod(size) > len(values) or (math.prod(size) and last >= len(values)):
        raise UserError(f"a tensor of size {list(size)} in a storage of {len(values)} elements")
    return (
        torch.from_numpy(values.astype(np.float32))
        .as_strided(size, stride, offset)
        .clone(memory_format=torch.contiguous_format)
    )


def _refuse(node: Any) -> NoReturn:
    raise UserError(f"its generator holds a {_describe(node)} where a tensor should be")


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(type(n) is int and 0 <= n < 1 << 40 for n in values)


def _storage(node: Any) -> np.ndarray:
    """The elements of one storage: bytes in torch's old format, five pickles and then the raw elements."""
    if not (isinstance(node, Call) and node.function.name == _STORAGE and len(node.arguments) == 1):
        _refuse(node)
    if not isinstance(node.arguments[0], bytes):
        raise UserError("a storage that is not bytes")
    data = node.arguments[0]
    stream = io.BytesIO(data)
    magic, protocol, _, described, keys = (parse(stream, lambda name: name in _DTYPES) for _ in range(5))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise UserError("a storage that is not in torch's format")
    identity = described.id if isinstance(described, Persistent) else None
    if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
        raise UserError("a storage that does not say what it holds")
    kind, key, numel = identity[1], identity[2], identity[4]
    if not isinstance(kind, Global) or keys != [key]:
        raise UserError("a storage that does not hold itself alone")
    dtype, start = np.dtype(_DTYPES[kind.name]), stream.tell() + 8
    counted = int.from_bytes(data[start - 8 : start], "little", signed=True)
    if counted != numel or len(data) - start != counted * dtype.itemsize:
        raise UserError(f"a storage of {len(data)} bytes that should hold {numel} elements of {dtype}")
    return np.frombuffer(data, dtype, numel, start)


def _plane_axes(generator: dict[str, Any]) -> list[list[int]]:
    """The world axes of each plane's width, height and depth, from the matrices that the renderer keeps."""
    renderer = _items(generator.get("_modules", {})).get("renderer")
    kept = _module(renderer).get("plane_axes") if renderer is not None else None
    if kept is None:
        return [list(axes) for axes in PLANE_AXES]
    matrices = _tensor(kept)
    # Coordinates are multiplied by the inverse; of a permutation that picks the axis where each row has its 1.
    if matrices.shape != (3, 3, 3) or not torch.equal(matrices @ matrices.mT, torch.eye(3).expand(3, 3, 3)):
        raise UserError("its planes do not lie along the axes of the world")
    return matrices.abs().argmax(dim=-1).tolist()


def _plain(node: Any, depth: int = 0, budget: list[int] | None = None) -> Any:
    """A described value as JSON has it."""
    budget = [_MAX_VALUES] if budget is None else budget
    budget[0] -= 1
    if depth > _MAX_DEPTH or budget[0] < 0:
        raise UserError("its options are nested too deeply, or too many")
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, tuple | list):
        return [_plain(item, depth + 1, budget) for item in node]
    if isinstance(node, Call) and node.function.name in _SCALARS:
        return _scalar(node)
    items = _items(node)
    if not all(isinstance(name, str) for name in items):
        raise UserError("its options have names that are not text")
    return {name: _plain(value, depth + 1, budget) for name, value in items.items()}


def _scalar(node: Call) -> float | int | bool:
    """A numpy scalar: its dtype's name and its bytes."""
    kind, data = node.arguments if len(node.arguments) == 2 else (None, None)
    name = None
    if isinstance(kind, Call) and kind.function.name == "numpy.dtype" and kind.arguments:
        name = kind.arguments[0]
    if name not in ("f8", "f4", "i8", "i4", "b1") or not isinstance(data, bytes) or len(data) != int(name[1]):
        raise UserError("its options hold a numpy scalar that is not a plain number")
    return np.frombuffer(data, np.dtype(name))[0].item()
