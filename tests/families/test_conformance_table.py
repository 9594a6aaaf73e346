"""The published table of families is what the conformance suite says today, line by line."""

from __future__ import annotations

import pytest

from families.every import LMS, VLMS
from scripts.docs import conformance_table, generate

PAGE = (generate.OUT / "conformance.md").read_text().splitlines()
TITLES = {name: tiny.title for name, tiny in (VLMS | LMS).items()}


@pytest.mark.parametrize("name", TITLES)
def test_a_line_is_not_stale(name, made):
    """The whole suite passes on a prompt with a picture, cold and warm, and the page says so."""
    line = conformance_table.line(TITLES[name], made(name))
    assert "**no**" not in line
    assert line in PAGE, line


def test_the_page_has_these_lines_and_notes(made):
    end = PAGE.index("")
    titles = [line.split(" | ")[0].removeprefix("| ") for line in PAGE[2:end]]
    assert PAGE[:2] == conformance_table.head()
    assert sorted(titles) == sorted(TITLES.values())
    said = [n for name in TITLES for n in conformance_table.notes(TITLES[name], made(name))]
    assert sorted(PAGE[PAGE.index(conformance_table.NOTES) + 2 :]) == sorted(set(said))
