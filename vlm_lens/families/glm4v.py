"""GLM-4V: patches merged by a convolution, a text model with norms before and after each part."""

from __future__ import annotations

from typing import Any

from vlm_lens.families.parts.patch_merging import TOWER, PatchMergingFamily
from vlm_lens.families.parts.stack import BlockParts
from vlm_lens.points.sites import OutputSite


class Glm4vFamily(PatchMergingFamily):
    """`Glm4vForConditionalGeneration`, and that with a mixture of experts (GLM-4.5V)."""

    name = "glm4v"
    model_types = ("glm4v", "glm4v_moe")
    tower_parts = BlockParts(
        ln1="norm1", attn="attn", q=None, k=None, v=None, o="proj", ln2="norm2", mlp="mlp",
        mlp_pre="gate_proj", mlp_linear="up_proj", mlp_post="down_proj",
    )  # fmt: skip
    tower_reads = OutputSite(f"{TOWER}.post_layernorm")
    marks = ("image_start_token_id", "image_end_token_id")

    def tower_width(self, config: Any) -> tuple[int, int]:
        """Its `intermediate_size` is the merger's; the blocks' own is the text model's width."""
        return config.hidden_size, config.out_hidden_size

    def placeholder(self, processor: Any) -> str:
        """The processor's image token between the marks of a picture's start and end."""
        return f"<|begin_of_image|>{processor.image_token}<|end_of_image|>"
