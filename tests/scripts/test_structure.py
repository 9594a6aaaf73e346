"""The counts of the code's structure, on packages small enough to count by hand."""

from __future__ import annotations

import textwrap

import pytest

from scripts.lint import structure


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package of the given modules and returns its root."""
    monkeypatch.setattr(structure, "CODE", ("vlm_lens",))

    def write(**modules: str):
        for name, text in modules.items():
            path = tmp_path / "vlm_lens" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    return write


def test_a_circle_through_lazy_and_typing_imports_is_found_once(package):
    root = package(
        a__one="from vlm_lens.b import two\n",
        b__two="""\
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from vlm_lens.c.three import Three
            """,
        c__three="""\
            def late():
                from ..a.one import x
            """,
        c__four="import vlm_lens.c.three\n",
    )
    graph = structure.imports(root)
    assert graph["vlm_lens.a.one"] == {"vlm_lens.b.two"}
    assert graph["vlm_lens.c.three"] == {"vlm_lens.a.one"}
    (circle,) = structure.circles(graph)
    assert set(circle) == {"vlm_lens.a.one", "vlm_lens.b.two", "vlm_lens.c.three"}
    assert circle[0] == circle[-1]
    (circle,) = structure.circles(structure.rooms(graph))
    assert set(circle) == {"vlm_lens.a", "vlm_lens.b", "vlm_lens.c"}


def test_packages_may_stand_in_a_circle_where_no_module_does(package):
    root = package(
        a__one="from vlm_lens.b.two import x\n",
        b__two="x = 1\n",
        b__three="from vlm_lens.a import four\n",
        a__four="",
    )
    assert not structure.circles(structure.imports(root))
    (circle,) = structure.circles(structure.rooms(structure.imports(root)))
    assert circle == ["vlm_lens.a", "vlm_lens.b", "vlm_lens.a"]


def test_long_modules_and_untyped_models(package):
    root = package(
        long="x = 1\n" * 401,
        full="x = 1\n" * 400,
        typed="""\
            class A:
                vlm: Any
                def run(self, vlm: Any, other: Any) -> None: ...
                def walk(self, vlm: HookedVLM) -> None: ...
            """,
    )
    assert list(structure.long_modules(root)) == ["vlm_lens.long: 401 lines"]
    assert list(structure.untyped_models(root)) == ["vlm_lens/typed.py:2", "vlm_lens/typed.py:3"]


def test_test_files_mirror_source_files(package):
    root = package(a__one="", b__c__two="")
    (root / "docs").mkdir()
    (root / "scripts" / "lint").mkdir(parents=True)
    (root / "scripts" / "lint" / "tidy.py").touch()
    mirrored = ("docs", "a/one", "a/a", "b/c/two", "b/c", "scripts/tidy", "whole/anything")
    for name in (*mirrored, "one", "a/two", "b/two", "scripts/untidy"):
        path = root / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"test_{path.name}.py").touch()
    found = list(structure.without_source(root))
    assert found == ["tests/a/test_two.py", "tests/b/test_two.py", "tests/scripts/test_untidy.py",
                     "tests/test_one.py"]  # fmt: skip


def test_counts_over_their_bound_fail_and_are_listed(package, capsys, monkeypatch):
    root = package(long="x = 1\n" * 401)
    longs = structure.long_modules
    monkeypatch.setattr(structure, "COUNTS", {"modules too long": (lambda r: list(longs(r)), 1)})
    assert structure.main(["--root", str(root)]) == 0
    assert "vlm_lens.long" not in capsys.readouterr().out
    package(longer="x = 1\n" * 500)
    assert structure.main(["--root", str(root)]) == 1
    printed = capsys.readouterr().out
    assert "2 modules too long (at most 1)" in printed and "vlm_lens.longer: 500" in printed
