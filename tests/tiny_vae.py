"""Autoencoders too small to know anything, in the format and with the cells of Stable Diffusion's."""

from pathlib import Path

import torch


def write_vae(folder: Path, seed: int = 0, width: int = 8, **changes) -> str:
    from diffusers import AutoencoderKL

    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (width,) * 4,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoencoderKL(**{**config, **changes}).save_pretrained(folder)
    return str(folder)
