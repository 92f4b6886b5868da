import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import SHAPE
from tiny_vae import write_vae

from geometry.cameras import orbit
from manifests.errors import UserError
from train.families import load_model
from train.families.spinmeround.config import SpinMeRoundConfig
from train.families.spinmeround.model import NullCondition, SpinMeRoundConditions
from train.networks.config import FILE, About, IdentityShape
from train.networks.model import Model, load_vae, meta_network, save_model
from train.networks.unet import run_unet, set_view_attention
from train.run.log import forward_flops


@pytest.fixture
def model(tmp_path) -> Model:
    vae = load_vae(write_vae(tmp_path / "vae"))
    return SHAPE.build(vae, About("5 noise heads", 16, (1,), True, 7))


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_model_comes_back_as_it_was(model, folder):
    back = load_model(folder)
    assert back.config == model.config
    assert back.about == model.about
    assert back.vae.sha256 == load_vae(str(folder / "vae")).sha256
    for name, weight in model.network.state_dict().items():
        assert torch.equal(weight, back.network.state_dict()[name])
    assert not back.network.training


def test_plain_diffusers_runs_it_once_its_attention_is_set(model, folder):
    """As docs/training.md has it."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    set_view_attention(unet, json.loads((folder / FILE).read_text())["shape"]["unet"]["joint_from"])
    g = torch.Generator().manual_seed(0)
    network, b, v = model.network.eval(), 2, 3
    latents, condition = (torch.randn(b, v, c, 8, 8, generator=g) for c in (network.latents, network.condition))
    level, tokens = torch.randn(b, generator=g), torch.randn(b, 1, 512, generator=g)
    with torch.no_grad():
        wanted = run_unet(network.unet, torch.cat([latents, condition], 2), level, tokens)
        found = unet(
            torch.cat([latents, condition], 2).flatten(0, 1),
            level.repeat_interleave(v),
            encoder_hidden_states=tokens.repeat_interleave(v, 0),
            cross_attention_kwargs={"views": v},
        ).sample
    assert torch.equal(found.unflatten(0, (b, v)), wanted)


def test_a_text_encoder_is_part_of_it(tmp_path, model):
    shape = replace(SHAPE, identity=IdentityShape("arc2face", 512, layers=1, heads=8))
    other = shape.build(model.vae)
    save_model(other, tmp_path / "model")
    back = load_model(tmp_path / "model")
    embedding = torch.nn.functional.normalize(torch.randn(2, 512), dim=1)
    assert torch.equal(back.tokens(embedding), other.tokens(embedding))


def test_latents_hold_the_picture_and_then_the_normals(model):
    rgb, normal = (torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    latents = model.encode(rgb, normal)
    assert latents.shape == (2, 3, 8, 2, 2)
    assert torch.equal(model.encode(rgb, rgb)[:, :, 4:], latents[:, :, :4])
    mean = model.vae.posterior(normal[1])[:, 0] * model.vae.scaling_factor
    assert torch.allclose(latents[1, :, 4:], mean, atol=1e-6)
    noise = torch.ones_like(latents)
    assert (model.encode(rgb, normal, noise=noise) > latents).all()  # a deviation above the mean
    pictures, normals = model.decode(latents)
    assert pictures.shape == normals.shape == rgb.shape
    one = model.vae.model.decode(latents[1, 2:, 4:] / model.vae.scaling_factor).sample.clamp(-1, 1)
    assert torch.allclose(normals[1, 2], one[0], atol=1e-5)


def test_a_scene_sees_relative_cameras(model):
    azimuth = np.array([20.0, 65.0, 110.0])
    cameras = orbit(azimuth, 0 * azimuth)[torch.arange(3).expand(2, -1)]
    given = torch.tensor([[True, False, False], [False, False, False]])
    clean, null = torch.zeros(2, 3, 8, 2, 2), model.null_condition(2)
    scene = model.conditions(cameras, given, clean, None)
    straight = orbit(azimuth - 20, 0 * azimuth)[None]
    wanted = model.conditions(straight, given[:1], clean[:1], None)
    assert torch.allclose(scene.rays[0], wanted.rays[0], atol=1e-5)
    assert not torch.allclose(scene.rays[1], wanted.rays[0], atol=1e-3)
    assert torch.equal(scene.context, null.context.expand(2, -1, -1))


def test_rays_are_made_in_single_precision_whatever_the_network_runs_in(model):
    azimuth = np.array([20.0, 65.0])
    args = (orbit(azimuth, 0 * azimuth)[None], torch.tensor([[True, False]]), torch.zeros(1, 2, 8, 2, 2), None)
    plain = model.conditions(*args).rays
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.conditions(*args).rays, plain)


def test_the_autoencoder_of_a_model_is_the_very_one_it_was_trained_with(model, folder, tmp_path):
    """Another hash, and the latents that were cached with it would not be found."""
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 99}))
    vae = load_vae(str(tmp_path / "vae"))
    save_model(replace(model, vae=vae), tmp_path / "again")
    assert load_vae(str(tmp_path / "again" / "vae")).sha256 == vae.sha256


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda about: about.pop("shape"), r"model.json is damaged \(KeyError: 'shape'\)"),
        (lambda about: about.update(format=9), r"its format is 9, this spinset reads 1"),
        (lambda about: about["shape"]["unet"].update(heads=3), r"16 channels do not divide into 4 groups and 3 heads"),
        (lambda about: about["shape"].update(colour=1), r"model.json is damaged \(TypeError"),
    ],
)
def test_descriptions_that_cannot_be(folder, damage, says):
    about = json.loads((folder / FILE).read_text())
    damage(about)
    (folder / FILE).write_text(json.dumps(about))
    with pytest.raises(ValueError, match=says):
        load_model(folder)


def test_folders_that_are_no_model(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no model of spinset: it has no model.json"):
        load_model(tmp_path / "nowhere")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"is no safetensors file, or is cut short"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"the weights of UNet2DConditionModel belong there"):
        load_model(folder)


def test_shapes_of_released_size_go_through_json(tmp_path, model):
    from dataclasses import asdict

    from train.families import read_about

    (tmp_path / "released").mkdir()
    about = {"format": 1, "shape": asdict(SpinMeRoundConfig()), "about": asdict(About())}
    (tmp_path / "released" / FILE).write_text(json.dumps(about))
    assert read_about(tmp_path / "released") == (SpinMeRoundConfig(), About())


def test_a_family_that_is_not_known_is_refused(folder):
    card = json.loads((folder / FILE).read_text())
    assert card["family"] == "spinmeround"
    (folder / FILE).write_text(json.dumps({**card, "family": "triplane"}))
    with pytest.raises(UserError, match=r"is a model of the family 'triplane'; this spinset knows spinmeround"):
        load_model(folder)


def test_operations_of_the_released_size(tmp_path):
    """For 8 views of 512 px; a multiplication and an addition are two operations."""
    vae = replace(load_vae(write_vae(tmp_path / "vae")), channels=4, factor=8)
    network = meta_network(replace(SHAPE.build(vae), config=SpinMeRoundConfig()))
    rays, latents = torch.empty(1, 8, 144, 64, 64, device="meta"), torch.empty(1, 8, 8, 64, 64, device="meta")
    context, given = torch.empty(1, 77, 768, device="meta"), torch.zeros(1, 8, dtype=torch.bool, device="meta")
    null = NullCondition(latents[0, 0], context[0])
    conditions = SpinMeRoundConditions(latents, given, rays, context, null)
    assert forward_flops(network, conditions, latents) / 1e12 == pytest.approx(7.30, abs=0.05)
