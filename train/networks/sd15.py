"""Settings of the models that SpinMeRound and Arc2Face begin with: Stable Diffusion 1.5 and the text half of CLIP ViT-L/14."""

from typing import Any

from train.networks.config import UNetShape

Config = dict[str, Any]

SD15_VAE_CONFIG: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
"""Config of diffusers' AutoencoderKL."""

CLIP_L_TEXT_CONFIG: Config = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""Config of transformers' CLIPTextModel."""


def sd15_unet_config(in_channels: int = 4, out_channels: int = 4) -> Config:
    """Config of diffusers' UNet2DConditionModel; SpinMeRound's differs only in its 153 input and 8 output channels."""
    return UNetShape().diffusers(in_channels, out_channels)
