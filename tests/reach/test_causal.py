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
SAMPLE = ("apertus", "arcee", "bloom", "cohere2", "deepseek_v2", "gemma2", "biogpt", "falcon")


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_line_is_not_stale(model_type):
    assert causal_table.line(model_type, *tried(model_type)) == PAGE[model_type]


def test_enough_are_at_branch_level():
    levels = [line.split(" | ")[1] for line in PAGE.values()]
    assert sum(level in ("full", "branches") for level in levels) >= 60
