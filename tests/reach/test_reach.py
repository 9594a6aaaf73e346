"""Every type that transformers maps to image-text-to-text, as the published table has it."""

from __future__ import annotations

import pytest

from reach.builder import TYPES
from reach.trial import Trial, quick
from scripts.docs import generate, reach_table

PAGE = {
    line.split(" | ")[0].removeprefix("| "): line
    for line in (generate.OUT / "reach.md").read_text().splitlines()
    if line.startswith("| ")
}

# what people use now
FIRST = (
    "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe", "qwen2_5_omni_thinker", "llama4", "glm46v",
    "glm4v_moe", "internvl", "llava_next", "perception_lm", "fast_vlm", "ovis2", "aria", "lfm2_vl",
    "cohere2_vision", "paddleocr_vl", "molmo2", "janus", "deepseek_vl", "llava_next_video",
    "video_llava", "gemma4",
)  # fmt: skip


def test_the_page_has_every_type():
    assert set(TYPES) <= set(PAGE)
    assert set(FIRST) <= set(TYPES)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_line_is_not_stale(model_type):
    """What a type shows is what the page says, and no check that is cheap finds a fault."""
    trial: Trial = quick(model_type)
    cells = reach_table.line(trial).split(" | ")
    told = PAGE[model_type].split(" | ")
    assert "**" not in PAGE[model_type] and not trial.failed, trial.failed
    assert cells[:4] == told[:4]
    if not trial.level:
        assert cells == told


def test_enough_conform():
    rows = [PAGE[t].split(" | ") for t in TYPES]
    levels = [row[1] for row in rows if row[1] != "refused"]
    assert len(levels) >= 70
    assert sum(level in ("full", "branches") for level in levels) >= 65
    assert sum("–" not in row[2:4] for row in rows if row[1] != "refused") >= 50
    assert all(PAGE[t].split(" | ")[1] != "refused" for t in FIRST)
