"""The meter against amounts that are known."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from vlm_lens.recipes.parts import cost_meter as m
from vlm_lens.recipes.parts.cost_meter import Meter

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")


def test_time_is_wall_clock_time():
    with Meter("cpu") as meter:
        time.sleep(0.05)
    assert 0.05 <= meter.seconds < 5


@linux
def test_the_peak_is_that_of_the_block_and_not_of_before():
    big = torch.ones(75_000_000)  # 300 MB, gone before the next block
    assert len(big) and m._resident("VmRSS") > 3e8
    del big
    with Meter("cpu") as small:
        kept = torch.ones(1000)
    with Meter("cpu") as large:
        gone = torch.ones(50_000_000)  # 200 MB
        del gone
    assert small.peak - small.before < 2e7
    assert large.peak - large.before == pytest.approx(2e8, rel=0.1)
    assert len(kept)


def test_where_nothing_tells_the_memory_it_is_missing(monkeypatch):
    monkeypatch.setattr(m, "_STATUS", Path("/nowhere"))
    monkeypatch.setattr(m, "_REFS", Path("/nowhere/too"))
    with Meter("cpu") as meter:
        pass
    assert math.isnan(meter.peak) and meter.seconds >= 0


@linux
def test_a_record_of_the_peak_that_cannot_be_reset_is_no_number(monkeypatch):
    monkeypatch.setattr(m, "_REFS", Path("/proc/self/nothing/of/the/kind"))
    with Meter("cpu") as meter:
        pass
    assert math.isnan(meter.peak) and math.isnan(meter.before)
