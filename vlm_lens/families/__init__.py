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

    Raises:
        ModelError: None is registered for its model type.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in _FAMILIES:
        raise ModelError(
            f"No family is registered for models of type {model_type!r}; known are "
            f"{', '.join(sorted(_FAMILIES))}. A family is a small class with one method, "
            "`architecture(model)`: see CONTRIBUTING.md, 'Adding a family', and "
            "`vlm_lens.families.register`."
        )
    return _FAMILIES[model_type]


def _register_own() -> None:
    from vlm_lens.families.decoders import DecoderFamily
    from vlm_lens.families.llava import LlavaFamily

    for family in (DecoderFamily(), LlavaFamily()):
        register(family)


_register_own()
