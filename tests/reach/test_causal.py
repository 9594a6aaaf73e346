"""Causal language models by structure: a sample of the published table, and its counts."""

from __future__ import annotations

import pytest

from reach.causal import tried
from scripts.docs import causal_table, generate

PAGE = {
    line.split(" | ")[0].removeprefix("| "): line
    for line in (generate.OUT / "causal.md").read_text().splitlines()
    if line.startswith("| ")
}
SAMPLE = (
    "gpt2", "gpt_neox", "openai-gpt", "phi3", "olmo2", "granite", "smollm3", "stablelm", "mixtral",
    "qwen3_moe", "deepseek_v3", "blt", "reformer", "bloom", "cohere2", "gemma2", "falcon",
    "cpmant", "musicgen", "xlnet",
)  # fmt: skip
# what cannot be made, or runs on no prompt alone
NOT_BUILT = {"gemma4_assistant", "gemma4_unified_assistant"}


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_line_is_not_stale(model_type):
    assert causal_table.line(model_type, *tried(model_type)) == PAGE[model_type]


def test_enough_are_at_branch_level():
    levels = {name: line.split(" | ")[1] for name, line in PAGE.items()}
    assert sum(level in ("full", "branches") for level in levels.values()) >= 150
    assert {name for name, level in levels.items() if level == "not built"} == NOT_BUILT
