"""Checkpoints are converted whole or not at all, and to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from official import write_official
from safetensors.torch import load_file, save_file
from tiny_models import TEXT_CONFIG, write_pipeline
from torch import Tensor

from train.networks.model import load_vae
from train.weights.convert import Converted, convert
from train.weights.names import OLD_VAE_ATTENTION, PARTS, TEXT, UNET, VAE, blank_model, read_config, sd15_unet_config

SCHEDULE = ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_mean_coef1", "logvar")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A folder of small models."""
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def released(pipeline) -> dict[str, Tensor]:
    """The same models as one official checkpoint."""
    return write_official(pipeline, pipeline / "spmr.safetensors")


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "file.safetensors"


def same(one: Path, other: Path, *folders: str) -> bool:
    """Whether the weights of two folders are the same bits and their configs the same."""
    for part in PARTS:
        if part.folder in folders:
            a, b = (load_file(folder / part.folder / part.weights) for folder in (one, other))
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
            assert read_config(one / part.folder) == read_config(other / part.folder)
    return sorted(path.name for path in other.iterdir()) == sorted(folders)


def refused(file: Path, dest: Path, says: str, like: Path | None = None) -> None:
    with pytest.raises(ValueError, match=says) as error:
        convert(file, dest, like)
    assert "\n" not in str(error.value)
    assert not dest.exists()


def test_a_whole_checkpoint_of_spinmeround(pipeline, released, tmp_path):
    converted = convert(pipeline / "spmr.safetensors", tmp_path / "back", like=pipeline)
    assert converted == Converted({"unet": 686, "vae": 248, "text_encoder": 36}, {})
    assert same(pipeline, tmp_path / "back", "unet", "vae", "text_encoder")
    prefixes = {"model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.encoder.text_model."}
    assert all(any(name.startswith(prefix) for prefix in prefixes) for name in released)
    assert released["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)


def test_what_was_converted_loads_whole(pipeline, tmp_path):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    convert(pipeline / "spmr.safetensors", tmp_path / "dest", like=pipeline)
    vae = load_vae(str(tmp_path / "dest" / "vae"))
    assert vae.scaling_factor == 0.18215
    for part, kind in ((UNET, UNet2DConditionModel), (TEXT, CLIPTextModel)):
        loaded: Any = kind.from_pretrained(tmp_path / "dest" / part.folder, output_loading_info=True)
        assert not loaded[1]["missing_keys"] and not loaded[1]["unexpected_keys"]
        weights = load_file(pipeline / part.folder / part.weights)
        assert all(torch.equal(v, weights[k]) for k, v in loaded[0].state_dict().items())


def test_what_is_no_weight_in_official_checkpoints_is_left_out_and_reported(pipeline, released, tmp_path):
    text = ("conditioner.embedders.0.encoder.", "cond_stage_model.transformer.")
    weights = {name.replace(*text): value for name, value in released.items()}
    more = {
        **{name: torch.rand(1000) for name in SCHEDULE},
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": torch.rand(8, 153, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    torch.save({"state_dict": {**weights, **more}, "global_step": 7}, tmp_path / "v1-5.ckpt")
    converted = convert(tmp_path / "v1-5.ckpt", tmp_path / "dest", like=pipeline)
    assert converted.ignored == {"moving averages": 2, "position numbers": 1, "noise schedule": 5}
    assert same(pipeline, tmp_path / "dest", "unet", "vae", "text_encoder")


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_alone(pipeline, released, tmp_path, prefix):
    of = "first_stage_model."
    weights = {prefix + k.removeprefix(of): v for k, v in released.items() if k.startswith(of)}
    losses = {"loss.logvar": torch.zeros(1), "loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": {**weights, **losses}}, tmp_path / "vae.ckpt")
    assert convert(tmp_path / "vae.ckpt", tmp_path / "dest", pipeline) == Converted(
        {"vae": 248}, {"training losses": 2}
    )
    assert same(pipeline, tmp_path / "dest", "vae")


def test_models_in_files_of_diffusers(pipeline, tmp_path, file):
    # As of Arc2Face, and of Stable Diffusion 1.5, whose autoencoder has the old names.
    convert(pipeline / "unet" / UNET.weights, tmp_path / "dest", pipeline)
    weights = load_file(pipeline / "vae" / VAE.weights)
    for old, new in OLD_VAE_ATTENTION.items():
        weights = {name.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): w for name, w in weights.items()}
    assert sum(".attentions.0.query." in name for name in weights) == 4
    save_file(weights, file)
    convert(file, tmp_path / "dest", pipeline)
    assert same(pipeline, tmp_path / "dest", "unet", "vae")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_models_of_transformers_before_and_since_5(pipeline, tmp_path, prefix):
    weights = load_file(pipeline / "text_encoder" / TEXT.weights)
    theirs = {prefix + name: value for name, value in weights.items()}
    theirs[prefix + "embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    converted = convert(tmp_path / "pytorch_model.bin", tmp_path / "dest", pipeline)
    assert converted == Converted({"text_encoder": 36}, {"position numbers": 1})
    assert same(pipeline, tmp_path / "dest", "text_encoder")


def test_the_text_half_of_clip(pipeline, tmp_path, file):
    weights = load_file(pipeline / "text_encoder" / TEXT.weights)
    image = {"logit_scale": torch.zeros(()), "vision_model.embeddings.class_embedding": torch.zeros(4)}
    save_file({**{f"text_model.{name}": value for name, value in weights.items()}, **image}, file)
    assert convert(file, tmp_path / "dest", pipeline).ignored == {"CLIP's image half": 2}


def test_half_precision_stays_half(pipeline, released, tmp_path, file):
    save_file({name: value.half() for name, value in released.items()}, file)
    convert(file, tmp_path / "dest", pipeline)
    assert {v.dtype for v in load_file(tmp_path / "dest" / "unet" / UNET.weights).values()} == {torch.float16}


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("model.diffusion_model.output_blocks.5.0.in_layers.2.weight", "up_blocks.1.resnets.2.conv1.weight"),
        ("first_stage_model.decoder.mid.attn_1.q.weight", "decoder.mid_block.attentions.0.to_q.weight"),
        ("conditioner.embedders.0.encoder.text_model.final_layer_norm.bias", "final_layer_norm.bias"),
    ],
)
def test_a_tensor_that_is_missing_or_wrong_is_named(pipeline, released, tmp_path, file, name, here):
    save_file({k: v for k, v in released.items() if k != name}, file)
    refused(file, tmp_path / "dest", rf"lacks what diffusers calls {here} \(1 of the \d+ tensors of a ", pipeline)
    save_file({**released, name: released[name][:-1].contiguous()}, file)
    refused(file, tmp_path / "dest", rf": {name} has the shape \(\d+.*; it must be \(\d+", pipeline)
    bad = released[name].clone().fill_(float("nan"))
    save_file({**released, name: bad}, file)
    refused(file, tmp_path / "dest", f": {name} is not made of finite floating point numbers", pipeline)
    save_file({**released, name: released[name].int()}, file)
    refused(file, tmp_path / "dest", f": {name} is not made of finite floating point numbers", pipeline)


def test_a_bias_that_diffusers_expects_is_named(pipeline, released, tmp_path, file):
    name = "model.diffusion_model.output_blocks.5.2.conv.bias"
    save_file({k: v for k, v in released.items() if k != name}, file)
    refused(file, tmp_path / "dest", r"the unet of the checkpoint is not like its config .*5\.2\.conv\.bias", pipeline)


def test_only_convolutions_of_one_pixel_become_matrices(pipeline, released, tmp_path, file):
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    wide = released[name].repeat(1, 1, 3, 3)
    save_file({**released, name: wide}, file)
    refused(file, tmp_path / "dest", rf"{name} has the shape \(32, 32, 3, 3\); it must be \(32, 32\)", pipeline)


def test_a_tensor_that_is_not_known_is_named(pipeline, released, tmp_path, file):
    motion = "model.diffusion_model.input_blocks_motion_module.0.0.temporal_transformer.norm.weight"
    save_file({**released, motion: torch.zeros(8)}, file)
    refused(file, tmp_path / "dest", rf"has {motion}, which no model known here has \(1 such tensors\)", pipeline)
    save_file({"frog": torch.zeros(1)}, file)
    refused(file, tmp_path / "dest", "has no UNet, autoencoder or CLIP text model; its first tensor is frog")
    save_file({}, file)
    refused(file, tmp_path / "dest", "has no UNet, autoencoder or CLIP text model; its first tensor is None")


def test_tensors_that_share_memory_are_written_apart(pipeline, released, tmp_path):
    names = [f"model.diffusion_model.middle_block.{n}.in_layers.0.bias" for n in (0, 2)]
    both = torch.rand(2, 32)
    shared = {**released, names[0]: both[0], names[1]: both[1], "model.diffusion_model.out.0.bias": both[0, :8]}
    torch.save(shared, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "dest", pipeline)
    weights = load_file(tmp_path / "dest" / "unet" / UNET.weights)
    assert torch.equal(weights["mid_block.resnets.1.norm1.bias"], both[1])
    assert torch.equal(weights["conv_norm_out.bias"], both[0, :8])


def test_models_that_are_there_are_not_overwritten(pipeline, tmp_path):
    file = pipeline / "text_encoder" / TEXT.weights
    convert(file, tmp_path / "dest", pipeline)
    with pytest.raises(ValueError, match="dest/text_encoder is there already; remove it, or give another folder"):
        convert(file, tmp_path / "dest", pipeline)


def test_sizes_are_those_of_a_folder_with_configs(pipeline, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no unet, vae or text_encoder folder with a config"):
        convert(pipeline / "spmr.safetensors", tmp_path / "other", like=tmp_path)


def test_configs_of_other_models_are_refused(pipeline, tmp_path):
    like = tmp_path / "like"
    for config, says in (
        ("{", "config.json is damaged"),
        ("[]", "config.json is not the config of a model"),
        ('{"block_out_channels": [8]}', "the config of unet builds no model known here"),
        (
            '{"use_linear_projection": true, "encoder_hid_dim": 8}',
            "lacks what diffusers calls encoder_hid_proj.weight .2 of the ",
        ),
    ):
        (like / "unet").mkdir(parents=True, exist_ok=True)
        (like / "unet" / "config.json").write_text(config)
        refused(pipeline / "unet" / UNET.weights, tmp_path / "dest", says, like)


def test_sizes_are_the_released_ones_unless_told_otherwise(pipeline, released, tmp_path, file):
    text = "conditioner.embedders.0.encoder.text_model.embeddings.token_embedding.weight"
    save_file({k: v for k, v in released.items() if k.startswith("conditioner.")}, file)
    refused(file, tmp_path / "dest", r"lacks what diffusers calls encoder\.layers\.2\..* \(160 of the 196 tensors")
    save_file({k: v for k, v in released.items() if k.startswith("first_stage_model.")}, file)
    refused(file, tmp_path / "dest", r"conv.* has the shape .*; it must be ")
    assert TEXT_CONFIG["hidden_size"] == released[text].shape[1]


def full_size(in_channels: int, out_channels: int) -> dict[str, Tensor]:
    """A UNet of zeros, which take no memory."""
    model = blank_model(UNET, sd15_unet_config(in_channels, out_channels))
    return {name: torch.zeros(1).expand(value.shape) for name, value in model.state_dict().items()}


def test_the_channels_of_a_unet_tell_which_it_is(tmp_path):
    path, dest = tmp_path / "unet.bin", tmp_path / "dest"
    weights = full_size(153, 8)
    torch.save({**weights, "conv_norm_out.bias": torch.zeros(3)}, path)
    assert path.stat().st_size < 2**20
    refused(path, dest, r"conv_norm_out\.bias has the shape \(3,\); it must be \(320,\)")
    torch.save({**weights, "conv_in.weight": torch.zeros(320, 4, 3, 3)}, path)
    refused(path, dest, "its UNet has 4 channels in and 8 out; Stable Diffusion 1.5 has 4 and 4, SpinMeRound 153 and 8")
    torch.save({k: v for k, v in weights.items() if k != "conv_in.weight"}, path)
    refused(path, dest, r"lacks what diffusers calls conv_in\.weight \(1 of the 686 tensors of a unet")
