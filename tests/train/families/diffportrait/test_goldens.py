"""The network against the released ones of DiffPortrait3D and DiffPortrait360, at a small size with hashed weights."""

import json
from typing import Any

import pytest
import torch
from hashed import hashed, hashed_weights
from safetensors.torch import load_file
from torch import Tensor

from train.families.diffportrait.config import DiffPortraitConfig
from train.families.diffportrait.model import DiffPortraitConditions, DiffPortraitNetwork
from train.networks.config import UNetShape
from train.weights.diffportrait import released_names

SHAPE = UNetShape(channels=(32, 64, 128, 128), context=24, joint_from=4)
FRONT, BACK = (hashed(f"fam.ref_{side}", (1, 4, 16, 16), 1.7) for side in ("front", "back"))
HINT = hashed("fam.hint", (8, 3, 128, 128))
VIEWS = hashed("fam.x", (8, 4, 16, 16), 1.7)


@pytest.fixture(scope="module", params=["diffportrait3d", "diffportrait360"])
def network(request, golden) -> DiffPortraitNetwork:
    """All weights are hashed from their released names, those of zero-initialised layers as well."""
    folder, layout = golden / "families", request.param
    made = DiffPortraitNetwork(DiffPortraitConfig(SHAPE, temporal=layout), 4, 8).eval()
    reference = json.loads((folder / "reference_attention/reference_attention.json").read_text())
    official = {
        **reference["params_denoiser_without_motion"],
        **reference["params_reference_net"],
        **json.loads((folder / "pose_control/pose_control.json").read_text())["params"],
        **json.loads((folder / f"temporal/temporal_{layout.replace('diffportrait', 'dp')}.json").read_text())["params"],
    }
    names, state = released_names(made, official), made.state_dict()
    weights = hashed_weights({there: tuple(state[here].shape) for here, there in names.items()})
    made.load_state_dict({**state, **{here: weights[there] for here, there in names.items()}})
    return made


@pytest.fixture
def neutral(network):
    """The network before its temporal layers are trained: their last projections are zero."""
    kept = {name: weight.clone() for name, weight in network.temporal.state_dict().items()}
    for layer in network.temporal.layers():
        torch.nn.init.zeros_(layer.proj_out.weight)
        torch.nn.init.zeros_(layer.proj_out.bias)
    yield network
    network.temporal.load_state_dict(kept)


def run(
    network: Any, references: list[Tensor], control: Tensor | None, null: bool = False, views: Tensor = VIEWS, t=501.0
):
    given = torch.stack(references, 1) if references else views[None, :0]
    x = torch.cat([torch.zeros_like(given), views[None]], 1)
    targets = torch.arange(x.shape[1])[None] >= given.shape[1]
    context, pictures = hashed("fam.ctx", (1, 5, 24)), None if control is None else control[None]
    conditions = DiffPortraitConditions(given, pictures, context, targets, null)
    with torch.inference_mode():
        return network(x, torch.tensor([t]), conditions)[0, given.shape[1] :]


def test_references_are_read_as_released(neutral, golden):
    official = load_file(golden / "families/reference_attention/reference_attention.safetensors")
    for name, references, null in (
        ("out.plain_uc", [FRONT], True),
        ("out.bank_front", [FRONT], False),
        ("out.bank_front_back", [FRONT, BACK], False),
    ):
        torch.testing.assert_close(run(neutral, references, None, null), official[name], atol=1e-4, rtol=0)


def test_control_pictures_are_read_as_released(neutral, golden):
    official = load_file(golden / "families/pose_control/pose_control.safetensors")
    made = run(neutral, [FRONT], HINT)
    torch.testing.assert_close(made, official["out.pose_and_front"], atol=1e-4, rtol=0)


def test_views_are_joined_as_released(network, golden):
    name = network.config.temporal.replace("diffportrait", "dp")
    official = load_file(golden / f"families/temporal/temporal_{name}.safetensors")
    torch.testing.assert_close(run(network, [FRONT], HINT, null=True), official["out.plain_uc"], atol=1e-4, rtol=0)
    torch.testing.assert_close(run(network, [FRONT, BACK], None), official["out.front_back"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["diffportrait3d", "diffportrait360", "back_head"])
def test_every_weight_of_the_released_checkpoints_has_its_place(layout, golden):
    folder = golden / "families/manifests"
    own = json.loads((folder / f"{layout if layout != 'back_head' else 'diffportrait360'}.json").read_text())
    parts = json.loads((folder / "sd15_parts.json").read_text())
    unet = parts["model.diffusion_model (SD1.5 part)"]
    official = {
        **{f"model.diffusion_model.{name}": shape for name, shape in unet.items()},
        **{f"control_model.{name}": shape for name, shape in unet.items() if not name.startswith("out.")},
        **{f"pose_control_model.{name}": shape for name, shape in parts["pose_control_model"].items()},
    }
    temporal = None if layout == "back_head" else layout
    if temporal:
        official |= {f"model.diffusion_model.{name}": shape for name, shape in own["motion"].items()}
    with torch.device("meta"):
        network = DiffPortraitNetwork(DiffPortraitConfig(temporal=temporal), 4, 8)
    names, state = released_names(network, official), network.state_dict()
    for here, there in names.items():
        assert list(state[here].shape) == official[there], there
    missing = {name for name in state if name not in names}
    assert all(name.startswith(("reference.conv_norm_out", "reference.conv_out")) for name in missing)
    assert {name for name in official if name not in names.values()} == {
        name for name in official if name.endswith("attention_blocks.1.pos_encoder.pe")
    }
