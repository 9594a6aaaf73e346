"""The names that a user types: loaded when first used, the same for editors, and typed."""

from __future__ import annotations

import ast
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
