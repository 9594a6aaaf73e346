"""Published layouts of dictionaries, one file each."""

from __future__ import annotations

from vlm_lens.dictionaries.layouts.circuit_tracer import CircuitTracer
from vlm_lens.dictionaries.layouts.eleuther import Eleuther
from vlm_lens.dictionaries.layouts.gemma_scope import GemmaScope2
from vlm_lens.dictionaries.layouts.parts import Reader
from vlm_lens.dictionaries.layouts.qwen_scope import QwenScope
from vlm_lens.dictionaries.layouts.saelens import SAELens

READERS: tuple[Reader, ...] = (
    GemmaScope2(), Eleuther(), SAELens(), QwenScope(), CircuitTracer(),
)  # fmt: skip

__all__ = ["READERS"]
