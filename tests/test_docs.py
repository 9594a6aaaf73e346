"""Every code block of the documentation runs, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import plotly.basedatatypes
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with the line on which it begins."""
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 1, m[1]) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_code_blocks_run(page, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("documentation opens no window")

    monkeypatch.setattr(plotly.basedatatypes.BaseFigure, "show", refuse)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for line, code in blocks(page):
        # padded, so that a failure names the line of the page
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_all_code_is_tested():
    fences = [f for p in PAGES for f in re.findall(r"^```(\S*)$", p.read_text(), re.MULTILINE)]
    assert set(fences) <= {"", "python", "console", "{eval-rst}", "{toctree}"} | {
        f for f in fences if f.startswith("{include}")
    }
    assert sum(len(blocks(p)) for p in PAGES) >= 15


def test_pages_name_only_points_that_exist():
    """Names in prose and tables, not only in code that runs."""
    from vlm_lens import HookedVLM

    table = HookedVLM.from_pretrained("toy-llava").points()
    wrong = {"blocks.3.hook_resid_pots"}
    for page in [*PAGES, ROOT / "docs" / "_generated" / "points.md"]:
        for name in re.findall(
            r"[`\"]((?:vision\.)?blocks\.[\d*]+\.[\w.]+)[`\"]", page.read_text()
        ):
            if name not in wrong:
                assert table.match(name), f"{page.name}: {name}"
