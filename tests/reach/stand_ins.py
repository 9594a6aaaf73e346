"""Towers in the places of those that the environment cannot build: timm's need torchvision."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModel, ConvNextConfig, ConvNextModel, PreTrainedModel
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig

from reach.types import CONVNEXT


class MapConfig(Gemma3nVisionConfig):
    """Of a tower that gives a map, as Gemma 3n's does."""

    model_type = "convnext_stand_in"


class MapTower(PreTrainedModel):
    """A ConvNeXt, called as Gemma 3n's tower is."""

    config_class = MapConfig

    def __init__(self, config: MapConfig):
        super().__init__(config)
        self.net = ConvNextModel(ConvNextConfig(**CONVNEXT))
        self.post_init()

    def forward(self, pixel_values: Tensor, do_pooling: bool = False, **kwargs: Any) -> Any:
        """The map."""
        return self.net(pixel_values=pixel_values)


AutoModel.register(MapConfig, MapTower)


def _gemma3n() -> MapConfig:
    return MapConfig(hidden_size=24, vocab_size=8, vocab_offset=120)


STAND_INS = {"gemma3n": _gemma3n}
