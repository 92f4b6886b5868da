"""Pipelines too small to know anything, in the folders and with the layers of the real ones."""

from pathlib import Path
from typing import Any

import torch

from train.weights.names import (
    CLIP_L_TEXT_CONFIG,
    PARTS,
    SD15_VAE_CONFIG,
    TEXT,
    UNET,
    VAE,
    blank_model,
    sd15_unet_config,
    write_part,
)

UNET_CONFIG = {
    **sd15_unet_config(153, 8),
    "block_out_channels": (8, 16, 32, 32),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
VAE_CONFIG = {**SD15_VAE_CONFIG, "block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4}
TEXT_CONFIG = {
    **CLIP_L_TEXT_CONFIG,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY: dict[str, dict[str, Any]] = {UNET.folder: UNET_CONFIG, VAE.folder: VAE_CONFIG, TEXT.folder: TEXT_CONFIG}


def write_pipeline(folder: Path) -> Path:
    """Random weights for unet, vae and text_encoder."""
    generator = torch.Generator().manual_seed(0)
    for part in PARTS:
        model = blank_model(part, TINY[part.folder])
        weights = {name: torch.randn(w.shape, generator=generator) / 8 for name, w in model.state_dict().items()}
        write_part(part, model, weights, folder)
    return folder
