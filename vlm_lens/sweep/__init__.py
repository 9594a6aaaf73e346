"""Many variants of one run, for little more than the price of one."""

from __future__ import annotations

from vlm_lens.sweep.result import SweepResult
from vlm_lens.sweep.run import sweep
from vlm_lens.sweep.variants import Grid, Variant

__all__ = ["Grid", "SweepResult", "Variant", "sweep"]
