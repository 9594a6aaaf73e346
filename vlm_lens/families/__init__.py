"""The registry of architecture families, by Hugging Face `config.model_type`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vlm_lens.errors import ModelError
from vlm_lens.families.by_structure import StructureFamily
from vlm_lens.families.parts.architecture import Architecture
from vlm_lens.families.parts.batch import GivenVideo, PictureBatch
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.stack import BlockParts, Stack

__all__ = [
    "Architecture",
    "BlockParts",
    "Family",
    "GivenVideo",
    "PictureBatch",
    "Stack",
    "families",
    "family_of",
    "register",
]

# The modules of this package; the families that each one defines are registered.
MODULES = (
    "aya_vision", "blip2", "chameleon", "decoder", "florence2", "fuyu", "gemma3", "glm4v",
    "idefics2", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3",
    "mllama", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl", "smolvlm", "vipllava",
)  # fmt: skip

_FAMILIES: dict[str, Family] = {}
_BY_CONFIG: dict[str, type[StructureFamily]] = {}


def register(family: Family) -> Family:
    """Makes a family known for its model types.

    Raises:
        ModelError: Another family already claims one of them.
    """
    for model_type in family.model_types:
        if model_type in _FAMILIES:
            raise ModelError(
                f"The model type {model_type!r} belongs to {_FAMILIES[model_type].name} already."
            )
        _FAMILIES[model_type] = family
    return family


def families() -> dict[str, Family]:
    """The registered families by model type."""
    return dict(_FAMILIES)


def family_of(config: Any) -> Family:
    """The family of a Hugging Face config.

    For a model type that no family claims, one that finds the parts by structure, and raises where
    it cannot when it is asked for the architecture.

    Raises:
        ModelError: A config without a model type.
    """
    model_type = getattr(config, "model_type", None)
    if model_type in _FAMILIES:
        return _FAMILIES[model_type]
    if model_type in _BY_CONFIG:
        return _BY_CONFIG[model_type](config)
    if not isinstance(model_type, str) or not hasattr(config, "get_text_config"):
        raise ModelError(f"{type(config).__name__} is not the config of a transformers model.")
    return StructureFamily(config)


def _defined_in(module: str) -> list[type[Family]]:
    """The families that a module defines, not those that it builds on."""
    found = vars(import_module(module)).values()
    classes = [c for c in found if isinstance(c, type) and issubclass(c, Family)]
    return [c for c in classes if c.__module__ == module]


for _name in MODULES:
    for _family in _defined_in(f"{__name__}.{_name}"):
        if issubclass(_family, StructureFamily):  # made for each model, of what it shows
            _BY_CONFIG.update(dict.fromkeys(_family.model_types, _family))
        else:
            register(_family())
