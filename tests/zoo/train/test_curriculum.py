"""The schedule of a stage."""

from __future__ import annotations

import pytest

from vlm_lens.zoo.train.curriculum import Stage, learning_rate, scaled
from vlm_lens.zoo.train.llava import Llava


def test_schedule_and_scaling() -> None:
    stage = Stage("x", False, 100, lr=1.0, warmup=10, decay=0.5, final=0.1)
    rates = [learning_rate(stage, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert rates[99] < 0.13
    assert sum(s.steps for s in scaled(Llava.stages, 100)) == pytest.approx(100, abs=5)
