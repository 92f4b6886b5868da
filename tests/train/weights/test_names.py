"""Names of official checkpoints become those of the installed diffusers and transformers, and compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hashed import hashed
from official import KEYS, load_hashed
from safetensors.torch import load_file

from train.weights.names import (
    CLIP_L_TEXT_CONFIG,
    LDM_UNET,
    LDM_VAE,
    SD15_VAE_CONFIG,
    TEXT,
    UNET,
    VAE,
    Part,
    blank_model,
    names_in,
    sd15_unet_config,
)

GOLDEN = Path(__file__).parents[2] / "golden"
SPINMEROUND: tuple[tuple[Part, dict[str, Any], int], ...] = (
    (UNET, sd15_unet_config(153, 8), 686),
    (VAE, SD15_VAE_CONFIG, 248),
    (TEXT, CLIP_L_TEXT_CONFIG, 196),
)
TINY_UNET = {
    **sd15_unet_config(29, 8),
    "block_out_channels": (32, 64, 128, 128),
    "cross_attention_dim": 24,
}
TINY_VAE = {
    **SD15_VAE_CONFIG,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 64, 64),
}


def used(part: Part, config: dict[str, Any], official: dict[str, tuple[int, ...]]) -> set[str]:
    """The official names that fill a model of full size, after a look at every shape."""
    model = blank_model(part, config)
    names, state = names_in(part, model, official), model.state_dict()
    assert names.keys() == state.keys()
    assert len(set(names.values())) == len(names)
    for here, there in names.items():
        shape = tuple(state[here].shape)
        is_attention = part is VAE and ".attentions." in here and here.endswith("weight") and "norm" not in here
        assert official[there] == ((*shape, 1, 1) if is_attention else shape), there
    return set(names.values())


def test_all_of_spinmeround_fits_the_full_size_models():
    found: set[str] = set()
    for part, config, count in SPINMEROUND:
        own = used(part, config, KEYS)
        assert len(own) == count
        found |= own
    assert found == KEYS.keys()
    assert len(found) == 1130


def test_the_parts_of_the_other_families_fit(golden):
    folder = golden / "families" / "manifests"
    official = {
        group: {name: tuple(shape) for name, shape in shapes.items()}
        for group, shapes in json.loads((folder / "sd15_parts.json").read_text()).items()
        if group != "note"
    }
    unet = official["model.diffusion_model (SD1.5 part)"]
    assert used(UNET, UNET.released, unet) == unet.keys()
    assert used(VAE, VAE.released, official["first_stage_model"]) == official["first_stage_model"].keys()
    text = {f"cond_stage_model.{name}": shape for name, shape in official["cond_stage_model"].items()}
    assert used(TEXT, TEXT.released, text) == text.keys()
    # ControlNet is the way down and the middle, with convolutions of its own.
    own = ("zero_convs.", "middle_block_out.", "input_hint_block.")
    half = {k: v for k, v in official["pose_control_model"].items() if not k.startswith(own)}
    assert half == {k: v for k, v in unet.items() if not k.startswith(("output_blocks.", "out."))}
    names = names_in(UNET, blank_model(UNET, UNET.released), unet)
    for layer in json.loads((folder / "name_maps.json").read_text())["bank_index"]:
        assert names[layer["diffusers"] + ".to_q.weight"] == layer["ldm"] + ".to_q.weight"


@pytest.mark.parametrize(
    ("part", "here", "there"),
    [
        (VAE, "decoder.up_blocks.0.resnets.2.conv1.bias", "decoder.up.3.block.2.conv1.bias"),
        (VAE, "decoder.up_blocks.3.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.bias"),
        (VAE, "encoder.down_blocks.1.downsamplers.0.conv.bias", "encoder.down.1.downsample.conv.bias"),
        (VAE, "decoder.mid_block.attentions.0.to_v.weight", "decoder.mid.attn_1.v.weight"),
        (UNET, "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
        (UNET, "up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        (UNET, "down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
    ],
)
def test_layers_that_are_easily_mixed_up(part, here, there):
    prefix = LDM_UNET if part is UNET else LDM_VAE
    assert names_in(part, blank_model(part, part.released), KEYS)[here] == prefix + there


@torch.no_grad()
def test_a_unet_computes_what_the_official_one_does_view_by_view():
    from diffusers import UNet2DConditionModel

    official = load_file(GOLDEN / "spinmeround_unet.safetensors")
    unet: Any = UNet2DConditionModel(**TINY_UNET).eval()
    load_hashed(UNET, unet)
    x, context = hashed("unet.x", (6, 29, 16, 16), 1.7), hashed("unet.ctx", (6, 5, 24))
    out = unet(x, official["timesteps"], context).sample
    torch.testing.assert_close(out, official["out_views1"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_autoencoder_computes_what_the_official_one_does():
    from diffusers import AutoencoderKL

    official = load_file(GOLDEN / "spinmeround_vae.safetensors")
    vae: Any = AutoencoderKL(**TINY_VAE).eval()
    load_hashed(VAE, vae)
    posterior = vae.encode(hashed("vae.x", (1, 3, 32, 32))).latent_dist
    torch.testing.assert_close(posterior.parameters, official["moments"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(posterior.mean).sample, official["decode_of_mean"], atol=1e-4, rtol=0)


def test_hashed_numbers_are_those_of_the_recipe():
    expected = [-0.8722931146621704, 0.8553871512413025, 0.8433452248573303, -0.9213013052940369]
    assert hashed("hash.check", (2, 4))[0].tolist() == expected
