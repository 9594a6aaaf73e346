"""The names that a user types: loaded when first used, the same for editors, and typed."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import vlm_lens

SOURCE = ast.parse(Path(vlm_lens.__file__).read_text())


def test_what_type_checkers_see_is_what_is_loaded():
    [guarded] = [n for n in SOURCE.body if isinstance(n, ast.If) and "for editors" not in str(n)
                 and n.body and isinstance(n.body[0], ast.ImportFrom)]  # fmt: skip
    seen = {name.name: node.module for node in guarded.body for name in node.names}
    assert seen == vlm_lens._HOMES


def test_every_name_is_there_and_nothing_else():
    for name, home in vlm_lens._HOMES.items():
        assert getattr(vlm_lens, name) is getattr(import_module(home), name)
    assert set(vlm_lens.__all__) == {*vlm_lens._HOMES, "__version__"}
    with pytest.raises(AttributeError, match="HookedVLN"):
        _ = vlm_lens.HookedVLN


def test_the_package_says_that_it_is_typed():
    assert files("vlm_lens").joinpath("py.typed").is_file()


NAMED = re.compile(r"\bvlm_lens(?:\.[A-Za-z_]\w*)+")
NO_NAMES = {"vlm_lens.Result", "vlm_lens.folder", "vlm_lens.Name"}  # kinds of file; any name


def _is_there(name: str) -> bool:
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@pytest.mark.slow
def test_what_messages_and_pages_name_is_there():
    root = Path(vlm_lens.__file__).parents[1]
    said: dict[str, set[str]] = {}
    for path in root.glob("vlm_lens/**/*.py"):
        texts = [n.value for n in ast.walk(ast.parse(path.read_text()))
                 if isinstance(n, ast.Constant) and isinstance(n.value, str)]  # fmt: skip
        said[str(path)] = {name for text in texts for name in NAMED.findall(text)}
    for path in (*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("docs/[rz]*/*.md")):
        said[str(path)] = set(NAMED.findall(path.read_text()))
    known = {name: _is_there(name) for name in set().union(*said.values()) - NO_NAMES}
    assert len(known) > 100
    wrong = {path: [n for n in names if not known.get(n, True)] for path, names in said.items()}
    assert not {path: names for path, names in wrong.items() if names}
