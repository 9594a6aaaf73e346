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
        ("layout.image[0].positions", "8", "'right'", "None", "[[1, 2]].pop", "torch.zeros(3, 2)"),
        ("torch.zeros(vlm.cfg.n_layers)", "[0.1, 0.2]", "['a'] * 8", "3", "None", "{'a': 1}"),
        ("patch(best, torch.zeros(vlm.cfg.d_model))", "[1, 2]", "read", "'currency'", "None"),
    ],
    "02_the_papers_finding": [
        ("99", "'block 3'", "None", "[3]", "alike"),
        ("'Greece'", "3", "None", "['Athens']", "vectors"),
        ("vectors['text'].layer(best)", "[1.0, 2.0]", "'noise'", "None", "3", "vectors"),
    ],
    "03_where_it_looks": [
        ("(2, 1)", "3", "'d1'", "None", "[0]", "prompt"),
        ("AttentionKnockout(Last(), keys=Images(), layers=[2])", "[1]", "'cut'", "None",
         "AttentionKnockout(Last(), keys=Images(), layers=[2], heads=[1])"),
        ("0", "'late'", "None", "[7]", "flowing"),
    ],
    "04_why_this_answer": [
        ("(99, 0)", "3", "'block 3'", "None", "[2, 2]", "pair"),
        ("0.0", "'much'", "None", "[1.0]", "parts"),
    ],
    "05_what_a_patch_says": [
        ("['Cow'] * 7", "8", "'Cow'", "None", "[1, 2]"),
        ("-1", "'first'", "None", "[0]", "table"),
    ],
    "06_your_own_model": [
        ("3", "'all'", "None", "[117]", "vlm"),
        ("(0, 0, 128, 64)", "64", "'middle'", "None", "[32, 96]", "task"),
        ("capitals", "3", "'worse'", "None", "[0.0]", "pd.DataFrame({'vector': [1]})"),
    ],
}  # fmt: skip
# what a check says of a wrong answer that many give
TOLD = {
    "01_first_look": [
        [("[2, 3, 6, 7, 10, 11, 14, 15]", "position 3"),
         ("layout.image[0].box(0, 0, flag.width / 2, flag.height)", "left half"),
         ("layout.image[0].box(flag.width / 2, 0, flag.width, 20)", "missing: [9,")],
        [("_right * vlm.cfg.n_heads", "sum over heads"), ("_right / 16", "mean over patches")],
        [("patch(best, read(Task.load('country-capital')))", "vector of capitals"),
         ("patch(7, read(Task.load('country-currency')))", "Nothing changes")],
    ],
    "02_the_papers_finding": [
        [("alike['text, image'].idxmax()", "most alike"),
         ("(alike['text, image'] - alike['text, another task']).idxmin()", "smallest")],
        [("vlm.generate('Q:Greece\\nA:', max_new_tokens=1).text[0]", "without the patch")],
        [],
    ],
    "03_where_it_looks": [
        [("(3, 0)", "row first"), ("(1, 4)", "from 0"), ("(2, 1)", "b3")],
        [("AttentionKnockout(Last(), keys=Images(), heads=[2])", "other blocks")],
        [("flowing.table.set_index('layer')['change'].idxmin()", "costs most; take the rows")],
    ],
    "04_why_this_answer": [
        [("_right[::-1]", "The other way round")],
        [("vlm.decompose(clean, token=pair.answer).heads().values.sum()", "heads alone")],
    ],
    "05_what_a_patch_says": [[], [("_right + 1", "One too many")]],
    "06_your_own_model": [[("len(vlm.points())", "all points")], [], []],
}  # fmt: skip
# right answers in another form: checks are about the answer, not its type
ALSO = {
    "01_first_look": ["tuple(right)", "looks.tolist()", "currency"],
    "02_the_papers_finding": ["float(meeting)", "word + ' '", "noise.tolist()"],
    "03_where_it_looks": ["list(seen)", "cut", "float(block)"],
    "04_why_this_answer": ["list(needed)", "parts.values.sum()"],
    "05_what_a_patch_says": ["tuple(words)", "float(rank)"],
    "06_your_own_model": ["float(count)", "list(seen)", "shuffled"],
}
# what the tutorials say that the model says, where the exercises are solved
RIGHT = {
    "01_first_look": ("without: Greece\n", "with:    Athens\n", "Right: Euro\n"),
    "02_the_papers_finding": (
        "text         after block 3: Athens\n",
        "patched: yellow",
        "Right: Athens\n",
    ),
    "03_where_it_looks": ("what is in b3? blue\n", "Right: (0, 3)\n"),
    "04_why_this_answer": ("Right: (", "Right: "),
    "05_what_a_patch_says": ("Right: ['", "Right: "),
    "06_your_own_model": ("the same: True\n", "Right: (32.0, 0.0, 96.0, 64.0)\n"),
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


def test_there_are_exercises_enough():
    assert sum(map(len, WRONG.values())) >= 15 and list(WRONG) == [p.stem for p in TUTORIALS]


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


PICTURES = """[...document.querySelectorAll('.jp-OutputArea-output.jp-RenderedImage img')]
  .map(i => [i.naturalWidth, i.getBoundingClientRect().width, i.alt])"""
CUT_CODE = """[...document.querySelectorAll('pre')].filter(
  e => e.scrollWidth > e.clientWidth + 2).map(e => e.innerText)"""


@pytest.mark.parametrize("width", [WIDTHS["phone"], WIDTHS["desktop"]], ids=["phone", "desktop"])
def test_every_figure_is_seen_in_its_page(browser, notebook, path, tmp_path, width):
    page = tmp_path / "tutorial.html"
    page.write_text(notebooks.page(notebook), encoding="utf-8")
    with browser.open(page, width=width) as shown:
        shown.settle()
        pictures = shown.js(PICTURES)
        assert len(pictures) == len(drawn(notebook)) >= 1
        assert all(real > 300 and seen > 500 for real, seen, _ in pictures)
        assert all(about and "No description" not in about for *_, about in pictures)
        assert shown.errors == [] and shown.fetched == []
        assert shown.narrow_cells == [] and shown.out_of_reach == [] and shown.cut == []
        assert shown.faint == [] and shown.wider_than_screen <= 0 and shown.js(CUT_CODE) == []


def test_every_figure_is_seen_without_network_as_nbconvert_exports_it(browser, notebook, tmp_path):
    """`jupyter nbconvert --to html`: the scripts that it asks for are not needed by any figure."""
    import nbconvert

    page = tmp_path / "tutorial.html"
    html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    page.write_text(html, encoding="utf-8")
    with browser.open(page, offline=True) as shown:
        pictures = shown.js(PICTURES)
        assert len(pictures) == len(drawn(notebook))
        assert all(real > 300 and seen > 500 for real, seen, _ in pictures)


@pytest.mark.slow
def test_outputs_are_those_of_the_present_code_and_checks_tell_right_from_wrong(
    path, notebook, tmp_path
):
    ran = copy.deepcopy(notebook)
    solutions = SOLUTION.findall("\n".join(c.source for c in ran.cells))
    exercises, checks = tagged(ran, "exercise"), tagged(ran, "check")
    told = TOLD[path.stem]
    wrong = [(*bad, *(answer for answer, _ in known))
             for bad, known in zip(WRONG[path.stem], told, strict=True)]  # fmt: skip
    assert len(solutions) == len(exercises) == len(checks) == len(wrong) >= 2
    also = ALSO[path.stem]
    for exercise, check, bad, good, form in zip(
        exercises, checks, wrong, solutions, also, strict=True
    ):
        assert exercise.source.endswith(" = ...")
        hint = ran.cells[ran.cells.index(exercise) - 1].source
        assert "<summary>Hint</summary>" in hint
        body = "\n".join(f"    {line}" for line in check.source.splitlines())
        tries = [
            f"{exercise.source.replace('...', answer)}\n"
            f"try:\n{body}\nexcept AssertionError as error:\n    print('refused:', error)\n"
            for answer in bad
        ]
        # not begun: the check says nothing
        name = exercise.source.partition(" ")[0]
        exercise.source = "".join(
            [f"{exercise.source}\n{check.source}\n{good}\n_right = {name}\n", *tries, good]
        )
        check.source += f"\n{name} = {form}\n{check.source}"
    notebooks.run(ran, tmp_path)
    for cell, bad, known in zip(exercises, wrong, told, strict=True):
        before, *said = re.split("^refused: ", printed(cell), flags=re.MULTILINE)
        assert not before and len(said) == len(bad) and all(line.strip() for line in said)
        for line, (answer, words) in zip(said[len(said) - len(known) :], known, strict=True):
            assert words in line, (answer, line)
    assert all(printed(cell).startswith("Right") for cell in checks)
    everything = "".join(printed(cell) for cell in ran.cells if cell.cell_type == "code")
    assert all(text in everything for text in RIGHT[path.stem])
    for cell in (*exercises, *checks):
        cell.outputs = []
    names = [(source, now) for source, _, now in notebooks.stale(notebook, ran)]
    assert names == [], "run python -m scripts.docs.notebooks"
    assert len(drawn(ran)) == len(drawn(notebook))
