"""The script that recomputes Table 2 and a phase curve without the library."""

from __future__ import annotations

import pytest

from scripts.zoo import recompute_table2 as script


@pytest.mark.slow
def test_recipes_equal_plain_transformers(capsys):
    assert script.recompute("toy-llava", ["food-flavor"], seeds=1) == []
    printed = capsys.readouterr().out
    for method in ("No Context", "Prompt", "Patch", "phases"):
        assert f"food-flavor, {method}:" in printed


def test_a_difference_is_found():
    """The comparison itself: another rule for what is right gives other numbers."""
    row = script.Row("Peru", ("Lima", "Lima city"), "x.png")

    class Plain:
        class tokenizer:  # noqa: N801
            encode = staticmethod(lambda text, add_special_tokens: list(text.encode()))
            decode = staticmethod(lambda ids, skip_special_tokens: bytes(ids).decode())

    assert script.right(Plain, " Lim", row) and script.right(Plain, "Lima city", row)
    assert not script.right(Plain, " ", row) and not script.right(Plain, "lima", row)
