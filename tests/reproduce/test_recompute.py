"""The script that recomputes Table 2 and a phase curve without the library."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "recompute_table2.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("recompute_table2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["recompute_table2"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["recompute_table2"]
    sys.path.remove(str(SCRIPT.parent))


@pytest.mark.slow
def test_recipes_equal_plain_transformers(script, capsys):
    assert script.recompute("toy-llava", ["food-flavor"], seeds=1) == []
    printed = capsys.readouterr().out
    for method in ("No Context", "Prompt", "Patch", "phases"):
        assert f"food-flavor, {method}:" in printed


def test_a_difference_is_found(script):
    """The comparison itself: another rule for what is right gives other numbers."""
    row = script.Row("Peru", ("Lima", "Lima city"), "x.png")

    class Plain:
        class tokenizer:  # noqa: N801
            encode = staticmethod(lambda text, add_special_tokens: list(text.encode()))
            decode = staticmethod(lambda ids, skip_special_tokens: bytes(ids).decode())

    assert script.right(Plain, " Lim", row) and script.right(Plain, "Lima city", row)
    assert not script.right(Plain, " ", row) and not script.right(Plain, "lima", row)
