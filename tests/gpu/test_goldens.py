"""Numbers of the official implementations, computed on the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_panohead import REDUCED, generator
from hashed import hashed
from official import load_hashed
from safetensors.torch import load_file

from datagen.config import PanoHeadConfig
from datagen.identity import rig_cameras
from datagen.rigs import find_rig
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.head import PanoHead
from datagen.sources.panohead.renderer import Jitter
from train.networks.config import UNetShape
from train.networks.unet import build_unet, run_unet
from train.weights.names import UNET

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def tiny() -> Generator:
    return generator(REDUCED).to("cuda")


@pytest.fixture(scope="module")
def cases() -> dict[str, torch.Tensor]:
    return {name: value.to("cuda") for name, value in load_file(REDUCED / "cases.safetensors").items()}


def difference(ours: torch.Tensor, official: torch.Tensor) -> float:
    """The largest difference from an official result, which may hold every n-th of its numbers."""
    step = -(-ours.numel() // official.numel())
    return (ours.flatten()[::step] - official.flatten()).abs().max().item()


@pytest.mark.parametrize(("name", "view"), [("front", "c_front"), ("side", "c_side")])
def test_panohead_synthesis_in_single_precision(tiny, cases, name, view, record_property):
    # As the cases were made: samples in the middle of their strata, or at their ends.
    ends = torch.linspace(0, 1, 8, device="cuda").expand(256, 8)
    jitter = Jitter() if name == "front" else Jitter(0.0, ends)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        seen = tiny.synthesis(cases["ws_1"][:1], cases[view], 16, None, "const", jitter)
    apart = difference(seen.image, cases[f"{name}.image"])
    record_property("largest difference", f"{apart:.2e}")
    assert apart < 1e-3
    assert difference(seen.image_mask, cases[f"{name}.image_mask"]) < 1e-4


def test_panohead_densities(tiny, cases, record_property):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        planes = tiny.planes(cases["ws_1"][:1])
    apart = difference(tiny.density(planes, cases["points"]), cases["points_sigma"])
    record_property("largest difference", f"{apart:.2e}")
    assert apart < 1e-3  # densities go up to 64


def test_fast_views_are_close_to_exact_ones(tiny, record_property):
    cameras = rig_cameras(find_rig("orbit-4", grid=True), 0, 0)
    exact, fast = (
        PanoHead(tiny, 0, PanoHeadConfig(precision=precision)).render(cameras, 64) for precision in ("exact", "fast")
    )
    apart = (fast.rgb - exact.rgb).abs()
    record_property("largest difference", f"{apart.max().item():.3f}")
    assert apart.max() < 0.05
    assert apart.mean() < 5e-3


def test_the_multiview_network(record_property):
    network: Any = build_unet(UNetShape(channels=(32, 64, 128, 128), context=24), 29, 8)
    load_hashed(UNET, network)
    network.eval().to("cuda")
    golden = load_file(GOLDEN / "spinmeround_unet.safetensors")
    x, context = hashed("unet.x", (6, 29, 16, 16), 1.7).to("cuda"), hashed("unet.ctx", (6, 5, 24)).to("cuda")
    x, level = x.reshape(6, 1, 29, 16, 16), golden["timesteps"].to("cuda")
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        out = run_unet(network, x, level, context).flatten(0, 1).cpu()
    apart = (out - golden["out_views1"]).abs().max().item()
    record_property("largest difference", f"{apart:.2e}")
    assert apart < 1e-3
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        half = run_unet(network, x, level, context).flatten(0, 1).float().cpu()
    relative = ((half - golden["out_views1"]).norm() / golden["out_views1"].norm()).item()
    record_property("bf16 relative error", f"{relative:.2e}")
    assert relative < 0.05
