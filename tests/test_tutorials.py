"""The tutorials run from top to bottom, their solutions pass their checks, wrong answers do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TUTORIALS = sorted((Path(__file__).resolve().parent.parent / "tutorials").glob("*.ipynb"))
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


def run(notebook, tmp_path):
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    return client.execute()


def tagged(notebook, tag):
    return [c for c in notebook.cells if tag in c.metadata.get("tags", ())]


def printed(cell):
    return "".join(o.get("text", "") for o in cell.outputs)


def test_outputs_are_not_kept(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)


def test_the_first_code_installs_where_needed_only(notebook):
    first = next(c for c in notebook.cells if c.cell_type == "code")
    assert re.search(r'if .*find_spec\("vlm_lens"\) is None:\n    assert', first.source)
    assert "%pip install -q git+{REPOSITORY}" in first.source


@pytest.mark.slow
def test_it_runs_as_it_is(notebook, tmp_path):
    done = run(notebook, tmp_path)
    assert all(printed(cell) == "" for cell in tagged(done, "check"))
    figures = [
        o for c in done.cells if c.cell_type == "code" for o in c.outputs
        if any("plotly" in kind for kind in o.get("data", {}))
    ]  # fmt: skip
    assert figures


@pytest.mark.slow
def test_checks_refuse_wrong_answers_and_pass_solutions(path, notebook, tmp_path):
    solutions = SOLUTION.findall("\n".join(c.source for c in notebook.cells))
    exercises, checks = tagged(notebook, "exercise"), tagged(notebook, "check")
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
        exercise.source = "".join([*tries, good])
    run(notebook, tmp_path)
    for cell, bad in zip(exercises, wrong, strict=True):
        said = printed(cell).splitlines()
        assert len(said) == len(bad) and all(line.startswith("refused: ") for line in said)
    assert all(printed(cell).startswith("Right") for cell in checks)
    everything = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert all(text in everything for text in RIGHT[path.stem])
