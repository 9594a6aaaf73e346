"""Where a model looks: rows of its attention patterns as scores, sinks, rollout, relative maps."""

from vlm_lens.attention.generated import generated_attention
from vlm_lens.attention.read import attention, attention_by_row
from vlm_lens.attention.relative import relative_attention
from vlm_lens.attention.rollout import attention_flow, attention_rollout
from vlm_lens.attention.sinks import Sinks, find_sinks
from vlm_lens.attention.summary import entropy, on_patches

__all__ = [
    "Sinks",
    "attention",
    "attention_by_row",
    "attention_flow",
    "attention_rollout",
    "entropy",
    "find_sinks",
    "generated_attention",
    "on_patches",
    "relative_attention",
]
