"""The generated parts of the documentation are what the code says today."""

from __future__ import annotations

import pytest

from scripts.docs import generate


@pytest.mark.parametrize("name", ["points.md", "commands.md"])
def test_a_generated_part_is_not_stale(name, capsys):
    """The cheap ones."""
    assert generate.main(["--check", "--only", name]) == 0, capsys.readouterr().err


def test_a_stale_part_is_told_and_mended(tmp_path, capsys, monkeypatch):
    pages = {"points.md": generate.points_page, "other.md": lambda: "a table"}
    monkeypatch.setattr(generate, "PAGES", pages)
    assert generate.main(["--check"], out=tmp_path) == 1
    assert "stale: points.md, other.md" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert generate.main([], out=tmp_path) == 0
    assert generate.main(["--check"], out=tmp_path) == 0
    (tmp_path / "points.md").write_text("another table")
    assert generate.main(["--check", "--only", "other.md"], out=tmp_path) == 0
    assert generate.main(["--check"], out=tmp_path) == 1
