"""The tutorials show what the present code gives, and their checks tell right from wrong."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from browser import WIDTHS  # noqa: E402

from scripts.docs import notebooks  # noqa: E402

TUTORIALS = sorted((Path(__file__).resolve().parent.parent / "tutorials").glob("*.ipynb"))
MOST = 1_500_000  # bytes of a file
# answers to the exercises of each tutorial that a check must refuse, also of wrong kinds
WRONG = {
    "01_first_look": [
        ("layout.image[0].positions", "8", "'right'", "None", "[[1, 2]].pop"),
        ("torch.zeros(vlm.cfg.n_layers)", "[0.1, 0.2]", "['a'] * 8", "3", "None", "{'a': 1}"),
        ("patch(best, torch.zeros(vlm.cfg.d_model))", "[1, 2]", "read", "'currency'", "None"),
    ],
    "02_what_a_patch_says": [
        ("['Cow'] * 7", "8", "'Cow'", "None", "[1, 2]"),
        ("-1", "'first'", "None", "[0]"),
    ],
    "03_why_this_answer": [
        ("(99, 0)", "3", "'block 3'", "None", "[2, 2]"),
        ("0.0", "'much'", "None", "[1.0]"),
    ],
}
# what the tutorials say that the model says, where the exercises are solved
RIGHT = {
    "01_first_look": ("without: Greece\n", "with:    Athens\n", "Right: Euro\n"),
    "02_what_a_patch_says": ("Right: ['", "Right: "),
    "03_why_this_answer": ("Right: (", "Right: "),
}
SOLUTION = re.compile(r"<summary>Solution</summary>.*?```python\n(.*?)```", re.DOTALL)


@pytest.fixture(params=TUTORIALS, ids=lambda p: p.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def tagged(notebook, tag):
    return [c for c in notebook.cells if tag in c.metadata.get("tags", ())]


def printed(cell):
    return "".join(o.get("text", "") for o in cell.outputs)


def outputs(notebook):
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def drawn(notebook):
    return [o for o in outputs(notebook) if "image/png" in o.get("data", {})]


def test_outputs_are_kept_each_figure_with_a_picture_and_the_file_is_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST
    kept = outputs(notebook)
    assert all(o.output_type != "error" and o.get("name") != "stderr" for o in kept)
    assert "<script" not in path.read_text()
    figures = [o for o in kept if notebooks.PLOTLY in o.get("data", {})]
    assert figures and all(o in drawn(notebook) for o in figures)
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run python -m scripts.docs.notebooks"


def test_the_first_code_installs_where_needed_only(notebook):
    first = next(c for c in notebook.cells if c.cell_type == "code")
    assert re.search(r'if .*find_spec\("vlm_lens"\) is None:\n    assert', first.source)
    assert "%pip install -q git+{REPOSITORY}" in first.source


def test_every_figure_is_seen_in_a_page_of_nbconvert(browser, notebook, path, tmp_path):
    page = tmp_path / "tutorial.html"
    page.write_text(notebooks.page(notebook), encoding="utf-8")
    with browser.open(page, width=WIDTHS["phone"]) as shown:
        pictures = shown.js(
            "[...document.querySelectorAll('.jp-OutputArea-output.jp-RenderedImage img')]"
            ".map(i => [i.naturalWidth, i.getBoundingClientRect().width, i.alt])"
        )
        assert len(pictures) == len(drawn(notebook)) >= 1
        assert all(real > 300 and seen > 200 for real, seen, _ in pictures)
        assert all(about and "No description" not in about for *_, about in pictures)
        assert shown.narrow_cells == [] and shown.fetched == []


@pytest.mark.slow
def test_outputs_are_those_of_the_present_code_and_checks_tell_right_from_wrong(
    path, notebook, tmp_path
):
    ran = copy.deepcopy(notebook)
    solutions = SOLUTION.findall("\n".join(c.source for c in ran.cells))
    exercises, checks = tagged(ran, "exercise"), tagged(ran, "check")
    wrong = WRONG[path.stem]
    assert len(solutions) == len(exercises) == len(checks) == len(wrong) >= 2
    for exercise, check, bad, good in zip(exercises, checks, wrong, solutions, strict=True):
        assert exercise.source.endswith(" = ...")
        body = "\n".join(f"    {line}" for line in check.source.splitlines())
        tries = [
            f"{exercise.source.replace('...', answer)}\n"
            f"try:\n{body}\nexcept AssertionError as error:\n    print('refused:', error)\n"
            for answer in bad
        ]
        # not begun: the check says nothing
        exercise.source = "".join([f"{exercise.source}\n{check.source}\n", *tries, good])
    notebooks.run(ran, tmp_path)
    for cell, bad in zip(exercises, wrong, strict=True):
        said = printed(cell).splitlines()
        assert len(said) == len(bad) and all(line.startswith("refused: ") for line in said)
    assert all(printed(cell).startswith("Right") for cell in checks)
    everything = "".join(printed(cell) for cell in ran.cells if cell.cell_type == "code")
    assert all(text in everything for text in RIGHT[path.stem])
    for cell in (*exercises, *checks):
        cell.outputs = []
    names = [(source, now) for source, _, now in notebooks.stale(notebook, ran)]
    assert names == [], "run python -m scripts.docs.notebooks"
    assert len(drawn(ran)) == len(drawn(notebook))
