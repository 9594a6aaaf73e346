"""The registry of architecture families, by Hugging Face `config.model_type`."""

from __future__ import annotations

from typing import Any

from vlm_lens.errors import ModelError
from vlm_lens.families.base import Architecture, BlockParts, Family, Stack

__all__ = ["Architecture", "BlockParts", "Family", "Stack", "families", "family_of", "register"]

_FAMILIES: dict[str, Family] = {}


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
    if not isinstance(model_type, str) or not hasattr(config, "get_text_config"):
        raise ModelError(f"{type(config).__name__} is not the config of a transformers model.")
    from vlm_lens.families.by_structure import StructureFamily

    return StructureFamily(config)


def _register_own() -> None:
    from vlm_lens.families.aya_vision import AyaVisionFamily
    from vlm_lens.families.blip2 import Blip2Family
    from vlm_lens.families.chameleon import ChameleonFamily
    from vlm_lens.families.fuyu import FuyuFamily
    from vlm_lens.families.gemma3 import Gemma3Family
    from vlm_lens.families.glm4v import Glm4vFamily
    from vlm_lens.families.idefics2 import Idefics2Family
    from vlm_lens.families.idefics3 import Idefics3Family
    from vlm_lens.families.internvl import InternVLFamily
    from vlm_lens.families.llava import LlavaFamily
    from vlm_lens.families.llava_next import LlavaNextFamily
    from vlm_lens.families.llava_onevision import LlavaOnevisionFamily
    from vlm_lens.families.mistral3 import Mistral3Family
    from vlm_lens.families.mllama import MllamaFamily
    from vlm_lens.families.paligemma import PaliGemmaFamily
    from vlm_lens.families.parts.decoders import DecoderFamily
    from vlm_lens.families.qwen2_5_vl import Qwen2_5VLFamily
    from vlm_lens.families.qwen2_vl import Qwen2VLFamily
    from vlm_lens.families.qwen3_vl import Qwen3VLFamily
    from vlm_lens.families.smolvlm import SmolVLMFamily
    from vlm_lens.families.vipllava import VipLlavaFamily

    for family in (
        Blip2Family(),
        DecoderFamily(),
        ChameleonFamily(),
        FuyuFamily(),
        Glm4vFamily(),
        Idefics2Family(),
        Idefics3Family(),
        InternVLFamily(),
        LlavaFamily(),
        AyaVisionFamily(),
        VipLlavaFamily(),
        LlavaOnevisionFamily(),
        Mistral3Family(),
        Gemma3Family(),
        LlavaNextFamily(),
        MllamaFamily(),
        PaliGemmaFamily(),
        Qwen2VLFamily(),
        Qwen2_5VLFamily(),
        Qwen3VLFamily(),
        SmolVLMFamily(),
    ):
        register(family)


_register_own()
