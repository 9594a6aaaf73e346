"""SmolVLM and SmolVLM2: built as Idefics3."""

from __future__ import annotations

from vlm_lens.families.idefics3 import Idefics3Family


class SmolVLMFamily(Idefics3Family):
    """`SmolVLMForConditionalGeneration`."""

    name = "smolvlm"
    model_types = ("smolvlm",)
