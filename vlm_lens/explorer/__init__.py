"""The explorer: one page on which a model's answers, attention and lens are seen and changed."""

from __future__ import annotations

from vlm_lens.explorer.explore import Explorer, explore

__all__ = ["Explorer", "explore"]
