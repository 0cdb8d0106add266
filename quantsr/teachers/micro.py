"""Shapes of teachers with as few channels as there can be: for tests, and to see that a benchmark runs."""

from typing import Any

MICRO: dict[str, Any] = {
    "timestep": 499,
    "prompt_tokens": 4,
    "color_fix": "wavelet",
    "vae": {
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    },
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "use_linear_projection": True,
        "norm_num_groups": 4,
    },
}
"""The shape of the packaged teacher with the fewest channels."""

MICRO_VIDEO: dict[str, Any] = {
    "frames": 3,
    "steps": 3,
    "start": 499,
    "latent_scale": 1.0,
    "prompt_tokens": 4,
    "flow": None,
    "color_fix": "wavelet",
    "vae": {"base_channels": 32, "channel_multipliers": [1, 1, 1], "blocks_per_level": 1},
    "unet": {
        "base_channels": 32,
        "channel_multipliers": [2, 2],
        "blocks_per_level": 1,
        "attention_levels": [1],
        "head_channels": 16,
        "prompt_channels": 16,
        "structure_channels": 32,
    },
    "structure": {
        "base_channels": 32,
        "channel_multipliers": [1, 2],
        "blocks_per_level": 1,
        "attention_levels": [1],
        "heads": 2,
        "out_channels": 32,
    },
}
"""Few channels, but 64 where the timestep matters: normalized in 32 groups of one channel, it would cancel out.

A latent pixel spans 4 pixels of the output.
"""
