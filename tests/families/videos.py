"""Videos as tensors, made of a family's own pictures: this environment's processors read none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vlm_lens import HookedVLM

Frames = Sequence[Image.Image]


def packed(vlm: HookedVLM, frames: Frames, *, apart: bool = False) -> dict[str, Tensor]:
    """A video for Qwen-VL and its kin, which merge two frames in time.

    Args:
        vlm: The model.
        frames: Frames of one size, an even number.
        apart: Whether each moment has marks of its own, a time before them, as Qwen3-VL's has.
    """
    processor, config = vlm.processor, vlm.hf_model.config
    vision = config.vision_config
    seen = [processor.image_processor([f], return_tensors="pt") for f in frames]
    rows, cols = seen[0]["image_grid_thw"][0, 1:].tolist()
    shape = (rows * cols, 3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    pixels = [s["pixel_values"].view(shape) for s in seen]
    moments = [
        torch.cat([a[:, :, :1], b[:, :, :1]], 2).flatten(1)
        for a, b in zip(pixels[::2], pixels[1::2], strict=True)
    ]
    n_tokens = rows * cols // vision.spatial_merge_size**2
    one = f"<|vision_start|>{processor.video_token * n_tokens}<|vision_end|>"
    if apart:
        text = "".join(f"<{i}.5 seconds>{one}" for i in range(len(moments)))
    else:
        text = one.replace(processor.video_token * n_tokens,
                           processor.video_token * n_tokens * len(moments))  # fmt: skip
    ids = torch.tensor([processor.tokenizer("Q:" + text + "\nA:")["input_ids"]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == config.video_token_id).long(),
        "pixel_values_videos": torch.cat(moments),
        "video_grid_thw": torch.tensor([[len(moments), rows, cols]]),
    }


def in_frames(vlm: HookedVLM, pixels: Tensor, n_tokens: int, token: int) -> dict[str, Tensor]:
    """A video for a LLaVA, whose tower reads it frame by frame.

    Args:
        vlm: The model.
        pixels: `[frame, channel, height, width]`.
        n_tokens: Its positions in the text.
        token: The token that stands for them.
    """
    ids = torch.tensor([[1, 25, 26, *[token] * n_tokens, 27, 28, 29]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels[None],
    }
