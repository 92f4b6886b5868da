"""A small generator of our own, and files in the format of the official checkpoints, honest and hostile ones."""

import collections
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import torch

from datagen.sources.panohead.build import build, empty_generator
from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.layers import FIR

RENDERING = {
    "superresolution_module": "training.superresolution.SuperresolutionHybridTinyDC",
    "triplane_size": 16, "triplane_depth": 3, "use_torgb_raw": True, "use_background": True,
    "decoder_activation": "none", "c_scale": 1.0, "depth_resolution": 12, "depth_resolution_importance": 12,
    "ray_start": 2.25, "ray_end": 3.3, "box_warp": 1, "superresolution_noise_mode": "none",
}  # fmt: skip
KWARGS = {
    "z_dim": 8, "c_dim": 25, "w_dim": 8, "img_resolution": 32, "img_channels": 3, "sr_num_fp16_res": 4,
    "mapping_kwargs": {"num_layers": 2}, "channel_base": 256, "channel_max": 16, "rendering_kwargs": RENDERING,
    "sr_kwargs": {"w_dim": 8, "sr_channels": [8, 4]},
}  # fmt: skip

RELEASE_RENDERING = {
    "superresolution_module": "training.superresolution.SuperresolutionHybrid8XDC", "sr_antialias": True,
    "superresolution_noise_mode": "none", "triplane_size": 256, "triplane_depth": 3, "use_torgb_raw": True,
    "use_background": True, "decoder_activation": "none", "decoder_lr_mul": 1, "depth_resolution": 48,
    "depth_resolution_importance": 48, "ray_start": 2.25, "ray_end": 3.3, "box_warp": 1,
    "disparity_space_sampling": False, "clamp_mode": "softplus", "c_scale": 1, "c_gen_conditioning_zero": False,
}  # fmt: skip
RELEASE = {
    "z_dim": 512, "c_dim": 25, "w_dim": 512, "img_resolution": 512, "img_channels": 3, "sr_num_fp16_res": 4,
    "mapping_kwargs": {"num_layers": 2}, "rendering_kwargs": RELEASE_RENDERING, "sr_kwargs": {},
    "architecture": "skip", "channel_base": 32768, "channel_max": 512, "num_fp16_res": 0, "conv_clamp": None,
}  # fmt: skip
"""The sizes of the released PanoHead, from its training script; a checkpoint has its own."""


def config(family="panohead", resolution=8, rendering=None, **changes) -> GeneratorConfig:
    return GeneratorConfig.from_official({**KWARGS, **changes}, {**RENDERING, **(rendering or {})}, resolution, family)


def untrained(config: GeneratorConfig, seed: int) -> Generator:
    """A generator as StyleGAN2 initialises it."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in empty_generator(config).state_dict().items():
        if key.endswith("resample_filter"):
            state[key] = FIR.clone()
        elif key.endswith(("bias", "w_avg", "noise_strength")):
            state[key] = torch.full(value.shape, 1.0 if key.endswith("affine.bias") else 0.0)
        else:
            state[key] = torch.randn(value.shape, generator=random)
            # Layers with a small learning rate hold correspondingly large weights.
            state[key] *= 100 if key.startswith("backbone.mapping.fc") else 1
    return build(config, state)


class Reduced:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def dumps(value: Any) -> bytes:
    """Pickle with the official module names in reach."""
    official = {"torch_utils": types.ModuleType("torch_utils"), _persistence.__name__: _persistence}
    before = {name: sys.modules.get(name) for name in official}
    sys.modules.update(official)
    try:
        return pickle.dumps(value, protocol=4)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def module(state: dict[str, Any]) -> Reduced:
    """A module as the official persistence pickles it."""
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": "Module", "state": state}
    return Reduced(_persistence._reconstruct_persistent_obj, meta)


def generator(state: dict[str, torch.Tensor], kwargs: dict[str, Any], resolution: int = 16, **changes: Any) -> Reduced:
    """A generator with these weights (buffers too, all as parameters) and constructor arguments."""
    attributes = {
        "_init_args": (),
        "_init_kwargs": kwargs,
        "rendering_kwargs": kwargs["rendering_kwargs"],
        "neural_rendering_resolution": resolution,
    }
    return _modules(state, {**attributes, **changes})


def write(path: Path, **parts: Any) -> Path:
    path.write_bytes(dumps(parts))
    return path


def _modules(state: dict[str, Any], attributes: dict[str, Any]) -> Reduced:
    own, children = collections.OrderedDict(), collections.defaultdict(dict)
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if rest:
            children[head][rest] = value
        else:
            own[head] = value
    nested = collections.OrderedDict((name, _modules(child, {})) for name, child in children.items())
    return module({"training": False, "_parameters": own, "_buffers": {}, "_modules": nested, **attributes})


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a checkpoint's own code was called")


_persistence = types.ModuleType("torch_utils.persistence")
_persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
_reconstruct_persistent_obj.__module__ = _persistence.__name__
