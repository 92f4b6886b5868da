"""Small models under the names of the released DiffPortrait checkpoints, in and out; goldens have the full manifests."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official import official_names
from safetensors.torch import load_file, save_file
from tiny_models import write_pipeline

from manifests.errors import UserError
from spinset import main
from train.families import load_model, read_about
from train.families.diffportrait.config import DiffPortraitConfig
from train.networks.config import About, UNetShape
from train.networks.model import Model, load_vae, save_model
from train.networks.unet import unet_config
from train.weights.convert import convert
from train.weights.diffportrait import write_released
from train.weights.names import UNET, VAE, blank_model, read_config

SHAPE = UNetShape((8, 16), (True, False), blocks=1, heads=2, context=16, joint_from=2, groups=4)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Configs of a UNet with as many channels as Stable Diffusion's, and an autoencoder with random weights."""
    folder = write_pipeline(tmp_path_factory.mktemp("pipeline"))
    config = unet_config(SHAPE, 4, 4)
    blank_model(UNET, config).save_config(folder / "unet")
    return folder


@pytest.fixture
def model(request, pipeline) -> Model:
    """A back generator, or a model with a layout of view-temporal layers."""
    layout = getattr(request, "param", None)
    config = DiffPortraitConfig(SHAPE, references=1 + (layout == "diffportrait360"), temporal=layout, prompt=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = config.build(load_vae(str(pipeline / "vae")), About("noise", 64, (config.references,), identity=False))
        for weight in made.network.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    # No file has what nothing reads; it becomes a copy of the UNet's.
    for layer in ("conv_norm_out", "conv_out"):
        made.network.reference.get_submodule(layer).load_state_dict(made.network.unet.get_submodule(layer).state_dict())
    return made


@pytest.fixture
def released(model, pipeline, tmp_path) -> Path:
    """A file as it was released: with the autoencoder, the schedule, view positions and a stem that nothing calls."""
    save_model(model, tmp_path / "model")
    write_released(model.config, tmp_path / "model", tmp_path / "steering.safetensors")
    tensors = load_file(tmp_path / "steering.safetensors")
    vae = load_file(pipeline / "vae" / VAE.weights)
    for here, there in official_names(VAE, blank_model(VAE, read_config(pipeline / "vae"))).items():
        tensors[there] = vae[here]
    tensors["betas"] = torch.zeros(1000)
    tensors["control_model.input_hint_block.0.weight"] = torch.zeros(16, 3, 3, 3)
    if model.config.temporal:
        name = "model.diffusion_model.input_blocks_motion_module.1.0.temporal_transformer.transformer_blocks.0"
        tensors[f"{name}.attention_blocks.1.pos_encoder.pe"] = torch.zeros(1, 24, 8)
    save_file(tensors, tmp_path / "released.safetensors")
    return tmp_path / "released.safetensors"


@pytest.mark.parametrize("model", ["diffportrait3d", "diffportrait360", None], indirect=True)
def test_a_released_file_becomes_the_model_it_was_written_from(model, released, pipeline, tmp_path):
    found = convert(released, tmp_path / "back", like=pipeline)
    assert set(found.parts) == {"unet", "vae", *model.config.parts}
    assert found.ignored["noise schedule"] == found.ignored["a stem that nothing calls"] == 1
    read = load_model(tmp_path / "back")
    assert read.config == model.config
    assert read.about.trained_on.startswith("what the released weights of DiffPortrait")
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, read.network.state_dict()[name]), name
    with pytest.raises(UserError, match=r"is there already; remove it"):
        convert(released, tmp_path / "back", like=pipeline)


def test_an_incomplete_file_is_refused_and_nothing_written(released, pipeline, tmp_path):
    tensors = load_file(released)
    for name, message in {
        "pose_control_model.middle_block_out.0.bias": r"lacks what diffusers calls controlnet_mid_block.bias",
        "control_model.middle_block.1.norm.weight": r"lacks what diffusers calls mid_block.attentions.0.norm.weight",
    }.items():
        save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "cut.safetensors")
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "cut.safetensors", tmp_path / "dest", like=pipeline)
    save_file({**tensors, "control_model.more.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(UserError, match=r"has control_model.more.weight, which no model known here has"):
        convert(tmp_path / "more.safetensors", tmp_path / "dest", like=pipeline)
    assert not (tmp_path / "dest").exists()
    steering = {k: v for k, v in tensors.items() if k.startswith("control_model.")}
    without_vae = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
    for part, message in (
        (steering, r"has no UNet, autoencoder or CLIP text model"),
        (without_vae, r"has a reference network without its UNet and autoencoder; give the whole checkpoint"),
    ):
        save_file(part, tmp_path / "part.safetensors")
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "part.safetensors", tmp_path / "dest", like=pipeline)


@pytest.mark.parametrize("model", ["diffportrait360"], indirect=True)
def test_the_command_writes_the_released_names(model, pipeline, tmp_path, capsys):
    save_model(model, tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "file.safetensors")]) == 0
    count = len(load_file(tmp_path / "file.safetensors"))
    assert capsys.readouterr().out == f"{tmp_path}/file.safetensors: {count} tensors\n"
    assert count == len(model.network.state_dict()) - 4  # what nothing reads
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "file.safetensors")]) == 2
    assert "is there already" in capsys.readouterr().err
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["shape"]["control"] = "rays"
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    config, _ = read_about(tmp_path / "model")
    with pytest.raises(UserError, match=r"has no form in which a system was released"):
        write_released(replace(config), tmp_path / "model", tmp_path / "other.safetensors")
