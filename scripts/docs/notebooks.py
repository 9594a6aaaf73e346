"""Runs the tutorials and keeps in each file what its cells give, with pictures of its figures.

`python -m scripts.docs.notebooks` runs all of them, with names (`01_first_look`) some. GitHub and
nbconvert show neither plotly's figures nor scripts: beside each interactive figure stands a
picture, drawn by the package itself. What stands in a file is compared with the present code by
tests/test_tutorials.py.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import plotly.graph_objects as go

from scripts.docs.examples import alike, tidy
from vlm_lens.figures.figure_html import fading
from vlm_lens.figures.static_figure import draw_figure
from vlm_lens.figures.style import plain_lines

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
PLOTLY = "application/vnd.plotly.v1+json"
DPI = 110
_NO_TEXT = "No description has been provided for this image"  # of nbconvert
# of nbconvert's look: columns are equally wide, however narrow that is, code is cut, and faint
_LOOK = """
.jp-RenderedHTMLCommon table { table-layout: auto }
.jp-RenderedHTMLCommon table td, .jp-RenderedHTMLCommon table th {
  white-space: nowrap; min-width: calc(8ch + 1.2em) }
.jp-OutputArea-output { overflow-x: auto }
@media (max-width: 600px) { .jp-RenderedImage img { max-width: none; width: 640px } }
.jp-InputArea pre, .jp-RenderedText pre { white-space: pre-wrap; overflow-wrap: anywhere }
:root { --jp-mirror-editor-operator-color: #7a1fd6; --jp-mirror-editor-comment-color: #336b6b;
  --jp-mirror-editor-number-color: #05724c }
"""
# before the first cell: views over pictures show themselves as PNG too
_SETUP = """
import tempfile
from pathlib import Path
from vlm_lens.figures.picture_view import PictureView
def _png(view):
    with tempfile.TemporaryDirectory() as folder:
        return view.save(Path(folder) / "view.png").read_bytes()
get_ipython().display_formatter.formatters["image/png"].for_type(PictureView, _png)
"""


def run(notebook: Any, folder: str | Path) -> Any:
    """Runs a notebook in place; it writes files into a folder only."""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_SETUP))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    try:
        client.execute()
    finally:
        del notebook.cells[0]
    for cell in code_cells(notebook):
        cell.outputs = [kept for o in cell.outputs if (kept := _lasting(o)) is not None]
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    """The cells of code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_outputs(notebook: Any) -> Any:
    """A notebook that has run as its file is written: numbered anew, with nothing of this run."""
    for number, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)  # states of progress bars that are not kept
    return notebook


def texts(cell: Any) -> str:
    """What a cell gives, as text: what it prints, its tables without their tags."""
    found = []
    printing = False
    for output in cell.outputs:
        data = output.get("data", {})
        shown = output.get("text") or data.get("text/html") or data.get("text/plain", "")
        if _picture(output):
            shown = ""  # a picture's text is the address of an object
        if "text/html" in data:
            shown = re.sub(r"<style.*?</style>", "", shown, flags=re.DOTALL)
            shown = unescape(re.sub(r"\s*<[^>]+>\s*", " ", shown))
        if printing and output.output_type == "stream":
            found[-1] += shown  # how often a kernel sends what is printed hangs on its haste
        else:
            found.append(shown)
        printing = output.output_type == "stream"
    return tidy(re.sub(r"/tmp/\w+", "a folder", "\n".join(found)))


def stale(kept: Any, ran: Any) -> list[tuple[str, str, str]]:
    """The cells whose text is another now: their code, what is kept, and what they give."""
    pairs = zip(code_cells(kept), code_cells(ran), strict=True)
    return [(a.source, texts(a), texts(b)) for a, b in pairs if not alike(texts(a), texts(b))]


def page(notebook: Any) -> str:
    """A notebook as a page of nbconvert that fetches nothing, with texts for its pictures."""
    import nbconvert

    exporter = nbconvert.HTMLExporter(
        mathjax_url="", require_js_url="", widget_renderer_url="data:text/javascript,"
    )
    html, _ = exporter.from_notebook_node(notebook)
    html = html.replace("</head>", f"<style>{_LOOK}</style></head>", 1)
    html = html.replace("</body>", f"{fading('.jp-OutputArea-output')}</body>", 1)
    for cell in code_cells(notebook):
        for about in (o.metadata["image/png"]["alt"] for o in cell.outputs if _picture(o)):
            html = html.replace(_NO_TEXT, escape(about), 1)
    return html


def _picture(output: Any) -> bool:
    return "image/png" in output.get("data", {})


def figure_of(data: dict) -> go.Figure:
    """The figure that plotly's own format holds."""
    return go.Figure(_unpacked({"data": data["data"], "layout": data["layout"]}))


def _unpacked(value: Any) -> Any:
    """Arrays where plotly's format has them as base64."""
    if isinstance(value, dict) and "bdata" in value:
        flat = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        shape = value.get("shape")
        return flat.reshape([int(n) for n in str(shape).split(",")]) if shape else flat
    if isinstance(value, dict):
        return {k: _unpacked(v) for k, v in value.items()}
    return [_unpacked(v) for v in value] if isinstance(value, list) else value


def _lasting(output: Any) -> Any | None:
    """An output as the file keeps it; None for progress bars."""
    data = output.get("data", {})
    if output.get("name") == "stderr" or any("widget" in kind for kind in data):
        return None
    if PLOTLY in data:
        figure, picture = figure_of(json.loads(json.dumps(data[PLOTLY]))), io.BytesIO()
        draw_figure(figure, picture, dpi=DPI)
        shown = base64.b64encode(picture.getvalue()).decode()
        output["data"] = nbformat.from_dict({PLOTLY: data[PLOTLY], "image/png": shown})
        about = ". ".join(plain_lines(figure.layout.title.text or "figure"))
    elif "<script" in data.get("text/html", ""):
        if not _picture(output):
            raise SystemExit("an output with scripts has no picture to stand for it")
        del data["text/html"]
        about = data["text/plain"].partition("; ")[0].strip("()")
    if _picture(output):
        output["metadata"] = nbformat.from_dict({"image/png": {"alt": about}})
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs tutorials and writes their files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 01_first_look; all by default")
    options = parser.parse_args(arguments)
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if options.names and path.stem not in options.names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, folder)
        nbformat.write(with_outputs(notebook), path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
