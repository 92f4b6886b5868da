"""Autoencoders are loaded whole or not at all, from local files, and known by what they compute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vae import write_vae

from train.networks.config import CONFIG, WEIGHTS
from train.networks.model import load_vae, vae_sha256

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(write_vae(tmp_path / "vae"))


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def test_the_posterior_is_that_of_diffusers(folder):
    vae, images = load_vae(str(folder)), torch.rand(3, 3, 32, 16) * 2 - 1
    with torch.no_grad():
        theirs = vae.model.encode(images).latent_dist
    assert (vae.factor, vae.channels, vae.scaling_factor) == (8, 4, 0.18215)
    assert vae.posterior(images).shape == (3, 2, 4, 4, 2)
    assert torch.equal(vae.posterior(images)[:, 0], theirs.mean)
    assert torch.equal(vae.posterior(images)[:, 1], theirs.std)


def test_patches_are_channels_of_one_place(tmp_path):
    one = {
        name: (kind,)
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D"))
    }
    shape = {**one, "block_out_channels": (8,), "in_channels": 48, "out_channels": 48, "latent_channels": 6}
    vae = load_vae(write_vae(tmp_path / "patches", **shape))
    assert (vae.factor, vae.channels) == (4, 6)
    images = torch.rand(2, 3, 16, 8) * 2 - 1
    codes = vae.posterior(images)[:, 0]
    assert codes.shape == (2, 6, 4, 2)
    # What the network reads of a cell are the pixels of its patch, colour by colour, row by row.
    patches = images.reshape(2, 3, 4, 4, 2, 4).permute(0, 1, 3, 5, 2, 4).reshape(2, 48, 4, 2)
    with torch.no_grad():
        theirs = vae.model.encode(patches).latent_dist.mean
        assert torch.equal(theirs, codes)
        back = vae.model.decode(codes).sample.reshape(2, 3, 4, 4, 4, 2).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 8)
        assert torch.equal(vae.decode(codes), back)
    for channels in ({"in_channels": 4}, {"in_channels": 12}, {"out_channels": 3}):
        odd = write_vae(tmp_path / "odd", **{**shape, **channels})
        with pytest.raises(ValueError, match=r"channels in and .* out; 3 are colours, 3 p.2 patches of p x p pixels"):
            load_vae(odd)


def test_the_hash_is_of_what_decides_the_latents(folder, tmp_path):
    before = vae_sha256(str(folder))
    edit(folder, _diffusers_version="0.0.1", _name_or_path="elsewhere")
    assert vae_sha256(str(folder)) == before == load_vae(str(folder)).sha256
    edit(folder, scaling_factor=0.5)
    assert vae_sha256(str(folder)) != before
    assert vae_sha256(write_vae(tmp_path / "other", seed=1)) != before


def test_weights_that_are_missing_unknown_or_of_another_shape_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    name, value = next(iter(weights.items()))
    for changed, says in (
        ({k: v for k, v in weights.items() if k != name}, f"1 weights are missing or unknown .first: {name}"),
        ({**weights, "frog": value.clone()}, "1 weights are missing or unknown .first: frog"),
        ({**weights, name: torch.zeros(3)}, "does not load as an AutoencoderKL"),
    ):
        save_file(changed, folder / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=says) as error:
            load_vae(str(folder))
        assert "\n" not in str(error.value)
    (folder / WEIGHTS).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="does not load as an AutoencoderKL"):
        load_vae(str(folder))


def test_shifted_latents_are_refused(folder):
    edit(folder, shift_factor=0.1)
    with pytest.raises(ValueError, match="has a shift_factor; only autoencoders with a scaling_factor alone"):
        load_vae(str(folder))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_what_is_not_there_is_not_fetched(folder, name):
    (folder / name).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=rf"it has no {name}; give the folder of a diffusers AutoencoderKL"):
        load_vae(str(folder))


def test_loading_data_does_not_import_diffusers():
    code = "import sys, train.data.loader, train.data.latents, train.data.sources; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
