"""The documentation's own look, on a small page in a real browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from browser import WHY_NONE, WIDTHS, Browser, chromium

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLUMNS = 14
PAGE = f"""# A page

```python
import plotly.graph_objects as go

from vlm_lens.figures.style import style

drawn = style(go.Figure(go.Scatter(y=[1, 3, 2])), title="What is drawn", x="block", height=300)
text = "a line of code that goes on past the right edge of each telephone and tablet, and on and on"
```

```{{shown}} drawn
```

![Patches on their way](points.svg)

{"|".join(["", *(f"column {i}" for i in range(COLUMNS)), ""])}
{"|".join(["", *["---"] * COLUMNS, ""])}
{"|".join(["", *["a number or more"] * COLUMNS, ""])}
"""
INK = 'getComputedStyle([...document.querySelectorAll(".js-plotly-plot text")].at(-1)).fill'
DIAGRAM = 'getComputedStyle(document.querySelector("svg.diagram text")).fill'
TEXT = 'getComputedStyle(document.querySelector("article p, article h1")).color'
EDGES = '[...document.querySelectorAll(".more")].map(e => e.tagName + "." + e.className)'


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "index.md").write_text(PAGE)
    (folder / "points.svg").write_bytes((DOCS / "pictures" / "points.svg").read_bytes())
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", DOCS, folder, folder / "html"]
    subprocess.run(command, check=True, timeout=120)
    return folder / "html" / "index.html"


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason=WHY_NONE)
def test_figures_follow_the_readers_choice_and_what_goes_on_shows_it(page):
    with Browser() as browser:
        for dark, width in enumerate(WIDTHS.values()):
            with browser.open(page, width=width, dark=bool(dark)) as shown:
                shown.wait('document.querySelector(".js-plotly-plot .main-svg")')
                shown.settle()
                ink = shown.js(TEXT)
                assert shown.js(INK) == shown.js(DIAGRAM) == ink
                assert not (shown.errors or shown.cut or shown.out_of_reach or shown.faint)
                assert shown.wider_than_screen <= 0 and not shown.narrow_cells
                assert all(asked.startswith("file:") for asked in shown.fetched)
                edges = shown.js(EDGES)
                assert any("table-wrapper" in e for e in edges), "the table goes on"
                assert any("PRE" in e for e in edges), "so does the code"
                # the button of the page, against what the system prefers
                shown.js(f"document.body.dataset.theme = {'light' if dark else 'dark'!r}")
                shown.wait(f"{TEXT} !== {ink!r}")
                assert shown.js(INK) == shown.js(DIAGRAM) == shown.js(TEXT)
                shown.js('document.querySelector(".table-wrapper").scrollLeft = 9999')
                shown.wait(f'!{EDGES}.some(e => e.includes("table-wrapper"))')
