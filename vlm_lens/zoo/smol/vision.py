"""Tower, projector and processor: LLaVA's parts, small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

__all__ = ["Eye", "IMAGE_TOKENS", "processor", "vision_config"]

SIZE, PATCH = 96, 24
IMAGE_TOKENS = (SIZE // PATCH) ** 2


def vision_config() -> CLIPVisionConfig:
    """The tower's configuration: 6 blocks of width 192, 16 patches and a class token."""
    return CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=192,
    )


class Eye(nn.Module):
    """A CLIP tower, read after its last block without its class token, and LLaVA's projector.

    Args:
        width: Of the language model.
        scale: Standard deviation of what the language model's embeddings have, given to the
            projector's results at the start.
        seed: Of the weights.
    """

    def __init__(self, width: int, scale: float, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        config = vision_config()
        self.tower = CLIPVisionModel(config)
        self.projector = nn.Sequential()
        self.projector.linear_1 = nn.Linear(config.hidden_size, width)
        self.projector.act = nn.GELU()
        self.projector.linear_2 = nn.Linear(width, width)
        with torch.no_grad():
            self.projector.linear_2.weight.normal_(std=scale * (2 / width) ** 0.5)

    def features(self, pixels: Tensor) -> Tensor:
        """What leaves the tower, class token first, `[picture, 1 + patch, vision width]`."""
        return self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        """The tokens of each picture, `[picture, token, width]`."""
        return self.projector(self.features(pixels)[:, 1:])


def processor(tokenizer: Any) -> Any:
    """LLaVA's processor: pictures resized to the tower's size, `<image>` once a patch."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
