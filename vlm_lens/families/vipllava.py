"""ViP-LLaVA: a LLaVA whose projector reads several layers of the tower side by side."""

from __future__ import annotations

from typing import Any

from vlm_lens.families.llava import LlavaFamily


class VipLlavaFamily(LlavaFamily):
    """`VipLlavaForConditionalGeneration`."""

    name = "vipllava"
    model_types = ("vipllava",)
    projector_input = "hidden_states"

    def dropped(self, config: Any) -> int:
        """The class token, always."""
        return 1
