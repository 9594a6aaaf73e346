"""Tiny random models of every type that transformers maps to image-text-to-text."""

from __future__ import annotations

import tiny
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from reach.shrunk import tiny_config
from reach.stand_ins import STAND_INS
from reach.types import CHANGES, TIMM

TYPES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def build(model_type: str) -> nn.Module:
    """A model of a type, with weights that make every part matter."""
    return tiny.randomize(pictured(model_type))


def pictured(model_type: str) -> nn.Module:
    """A model of a type, of the class that transformers maps it to."""
    config = tiny_config(model_type, CHANGES.get(model_type))
    if model_type in STAND_INS:
        config.vision_config = STAND_INS[model_type]()
    return getattr(transformers, TYPES[model_type])(config)


def replaced_tower(model_type: str) -> str:
    """What stands in the place of a tower that the environment cannot build, if something does."""
    if model_type in STAND_INS:
        return "its tower is timm's, which needs torchvision: a ConvNeXt stands in for it"
    changed = CHANGES.get(model_type, {}).get("vision_config")
    if model_type in TIMM and changed is not None:
        kind = changed["model_type"]
        return f"its tower is timm's, which needs torchvision: a {kind} stands in for it"
    return ""
