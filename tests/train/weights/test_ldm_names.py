"""Names fit official checkpoints and the installed diffusers and transformers, and weights under them compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hashed import hashed, hashed_weights
from safetensors.torch import load_file
from torch import nn

from train.networks.sd15 import CLIP_L_TEXT_CONFIG, SD15_VAE_CONFIG, sd15_unet_config
from train.weights.ldm_names import old_vae_names, shape_there, text_names, unet_names, vae_names
from train.weights.parts import PARTS, TEXT, UNET, VAE, Part, blank_model, settings

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


def shapes_there(part: Part, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    model = blank_model(part, config)
    names, state = part.names(settings(model)), model.state_dict()
    assert names.keys() == state.keys()
    assert len(set(names.values())) == len(names)
    return {there: shape_there(there, tuple(state[here].shape)) for here, there in names.items()}


def test_all_of_spinmeround_fits_the_full_size_models():
    official = {k: tuple(v) for k, v in json.loads((GOLDEN / "spinmeround_keys.json").read_text()).items()}
    ours: dict[str, tuple[int, ...]] = {}
    for part, config, count in SPINMEROUND:
        shapes = shapes_there(part, config)
        assert len(shapes) == count
        ours |= {part.prefixes[0] + name: shape for name, shape in shapes.items()}
    assert ours == official


def test_the_parts_of_the_other_families_fit(golden):
    folder = golden / "families" / "manifests"
    official = json.loads((folder / "sd15_parts.json").read_text())
    unet, vae, text = (shapes_there(part, part.released) for part in PARTS)
    assert unet == {k: tuple(v) for k, v in official["model.diffusion_model (SD1.5 part)"].items()}
    assert vae == {k: tuple(v) for k, v in official["first_stage_model"].items()}
    assert {f"transformer.{k}": v for k, v in text.items()} == {
        k: tuple(v) for k, v in official["cond_stage_model"].items()
    }
    # ControlNet is the way down and the middle, with convolutions of its own.
    own = ("zero_convs.", "middle_block_out.", "input_hint_block.")
    half = {k: tuple(v) for k, v in official["pose_control_model"].items() if not k.startswith(own)}
    assert half == {k: v for k, v in unet.items() if not k.startswith(("output_blocks.", "out."))}
    names = unet_names(sd15_unet_config())
    for layer in json.loads((folder / "name_maps.json").read_text())["bank_index"]:
        assert names[layer["diffusers"] + ".to_q.weight"] == layer["ldm"] + ".to_q.weight"


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 1},
        {"layers_per_block": 3, "transformer_layers_per_block": 2},
        {"block_out_channels": (32, 32, 32, 32)},
        {"block_out_channels": (64, 32, 96, 32), "layers_per_block": 1},
        {
            "block_out_channels": (32,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
        },
        {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ],
)
def test_unets_of_any_depth_have_the_names_of_diffusers(changes):
    shapes_there(UNET, {**TINY_UNET, **changes})


@pytest.mark.parametrize(
    ("widths", "layers"), [((32,), 1), ((32, 32), 3), ((64, 32, 96), 2), ((32, 64, 64, 96, 96), 1)]
)
def test_autoencoders_of_any_depth_have_the_names_of_diffusers(widths, layers):
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    shapes_there(VAE, {**TINY_VAE, **blocks, "block_out_channels": widths, "layers_per_block": layers})


@pytest.mark.parametrize("layers", [1, 3])
def test_text_models_of_any_depth_have_the_names_of_transformers(layers):
    shapes_there(TEXT, {**CLIP_L_TEXT_CONFIG, "num_hidden_layers": layers})


def test_the_decoder_counts_backwards_and_attends_through_convolutions():
    names = vae_names(SD15_VAE_CONFIG)
    assert names["decoder.up_blocks.0.resnets.2.conv1.bias"] == "decoder.up.3.block.2.conv1.bias"
    assert names["decoder.up_blocks.3.resnets.0.conv_shortcut.bias"] == "decoder.up.0.block.0.nin_shortcut.bias"
    assert names["encoder.down_blocks.1.downsamplers.0.conv.bias"] == "encoder.down.1.downsample.conv.bias"
    value = names["decoder.mid_block.attentions.0.to_v.weight"]
    assert value == "decoder.mid.attn_1.v.weight"
    assert shape_there(f"first_stage_model.{value}", (5, 5)) == (5, 5, 1, 1)
    assert shape_there("decoder.mid.attn_1.v.bias", (5,)) == (5,)
    assert shape_there("model.diffusion_model.middle_block.1.proj_in.weight", (5, 5, 1, 1)) == (5, 5, 1, 1)


def test_the_upsampler_of_the_unet_comes_behind_attention_where_there_is_any():
    names = unet_names(sd15_unet_config())
    assert names["up_blocks.0.upsamplers.0.conv.bias"] == "output_blocks.2.1.conv.bias"
    assert names["up_blocks.1.upsamplers.0.conv.bias"] == "output_blocks.5.2.conv.bias"
    assert names["down_blocks.2.downsamplers.0.conv.bias"] == "input_blocks.9.0.op.bias"


def test_the_old_names_of_diffusers_differ_in_attention_only():
    differ = {here: old for here, old in old_vae_names(SD15_VAE_CONFIG).items() if here != old}
    assert len(differ) == 2 * 4 * 2
    assert differ["encoder.mid_block.attentions.0.to_q.weight"] == "encoder.mid_block.attentions.0.query.weight"
    assert differ["decoder.mid_block.attentions.0.to_out.0.bias"] == "decoder.mid_block.attentions.0.proj_attn.bias"


def test_text_names_are_those_before_transformers_5():
    names = text_names(CLIP_L_TEXT_CONFIG)
    assert all(there == f"text_model.{here}" for here, there in names.items())


def load_hashed(model: nn.Module, part: Part, config: dict[str, Any]) -> None:
    names, state = part.names(config), model.state_dict()
    there = hashed_weights({there: shape_there(there, tuple(state[here].shape)) for here, there in names.items()})
    model.load_state_dict({here: there[name].reshape(state[here].shape) for here, name in names.items()})


@torch.no_grad()
def test_a_unet_computes_what_the_official_one_does_view_by_view():
    from diffusers import UNet2DConditionModel

    official = load_file(GOLDEN / "spinmeround_unet.safetensors")
    unet: Any = UNet2DConditionModel(**TINY_UNET).eval()
    load_hashed(unet, UNET, TINY_UNET)
    x, context = hashed("unet.x", (6, 29, 16, 16), 1.7), hashed("unet.ctx", (6, 5, 24))
    out = unet(x, official["timesteps"], context).sample
    torch.testing.assert_close(out, official["out_views1"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_autoencoder_computes_what_the_official_one_does():
    from diffusers import AutoencoderKL

    official = load_file(GOLDEN / "spinmeround_vae.safetensors")
    vae: Any = AutoencoderKL(**TINY_VAE).eval()
    load_hashed(vae, VAE, TINY_VAE)
    posterior = vae.encode(hashed("vae.x", (1, 3, 32, 32))).latent_dist
    torch.testing.assert_close(posterior.parameters, official["moments"], atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(posterior.mean).sample, official["decode_of_mean"], atol=1e-4, rtol=0)


def test_hashed_numbers_are_those_of_the_recipe():
    expected = [-0.8722931146621704, 0.8553871512413025, 0.8433452248573303, -0.9213013052940369]
    assert hashed("hash.check", (2, 4))[0].tolist() == expected
