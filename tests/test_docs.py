"""Every code block of README and documentation runs, and prints what the page shows."""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import plotly.basedatatypes
import pytest
import torch

import vlm_lens
from scripts.docs import examples

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = re.compile(r"^```\{shown\} (.*)$", re.MULTILINE)
# pages that write a task's vector into the prompt of a flag: what comes out then
ATHENS = ("README", "index", "interventions", "sweeps")


@pytest.mark.parametrize("page", [p for p in PAGES if examples.blocks(p)], ids=lambda p: p.stem)
def test_code_runs_and_prints_what_the_page_shows(page, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("documentation opens no window")

    monkeypatch.setattr(plotly.basedatatypes.BaseFigure, "show", refuse)
    # nnsight, once imported, parses the source of whoever calls backward, and a page is no Python
    monkeypatch.setattr(torch.Tensor, "backward", inspect.unwrap(torch.Tensor.backward))
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    printed = examples.run(page, namespace)
    for block, output in zip(examples.blocks(page), printed, strict=True):
        if block.shown is not None:
            where = f"{page.name}:{block.line}; run python -m scripts.docs.examples {page.name}"
            assert examples.alike(block.shown, output), f"{where}\n{output}"
    for expression in SHOWN.findall(page.read_text()):
        value = eval(expression, namespace)
        assert hasattr(value, "_repr_html_") or hasattr(value, "to_plotly_json"), expression
    if page.stem in ATHENS:
        assert any("Athens" in output for output in printed), "the vector gives the capital"
        prompts = namespace.get("examples") or namespace["prompts"]
        assert len(prompts) > 3 and not any("Greece" in one.text for one in prompts)


def test_all_code_is_tested():
    fences = [f for p in PAGES for f in re.findall(r"^```(\S*)$", p.read_text(), re.MULTILINE)]
    assert set(fences) <= {"", "python", "console", "text", "{eval-rst}", "{toctree}"} | {
        f for f in fences if f.startswith("{include}")
    }
    blocks = [block for page in PAGES for block in examples.blocks(page)]
    shown = [block for block in blocks if block.shown is not None]
    assert len(blocks) == fences.count("python") >= 15
    assert len(shown) == fences.count("text"), "what is shown stands right below its code"


def test_the_readme_is_short():
    text = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    words = [word for word in text.split() if re.search(r"\w", word)]
    assert len(words) <= 700


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


def _documented() -> list[object]:
    """What the API reference has an entry for."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    entry = re.compile(r"^\.\. auto(?:class|function|data):: (\S+)$", re.MULTILINE)
    names = [name for page in pages for name in entry.findall(page.read_text())]
    found = []
    for name in names:
        value, *rest = import_module("vlm_lens"), *name.split(".")[1:]
        for part in rest:
            value = getattr(value, part, None) or import_module(f"{value.__name__}.{part}")
        found.append(value)
    errors = import_module("vlm_lens.errors")  # documented as a whole
    return [*found, *vars(errors).values()]


@pytest.mark.parametrize(
    "room", ["vlm_lens", *(f"vlm_lens.{m.name}" for m in pkgutil.iter_modules(vlm_lens.__path__))]
)
def test_every_public_name_stands_in_the_reference(room):
    if room == "vlm_lens.__main__":
        pytest.skip("it runs the command line")
    module, documented = import_module(room), _documented()
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if not isinstance(value, ModuleType):
            assert any(value is known for known in documented), f"{room}.{name}"


def test_every_page_of_the_reference_is_listed():
    listed = re.findall(r"^reference/(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "docs" / "reference").glob("*.md"))
