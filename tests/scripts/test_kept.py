"""Lines that are kept are made once, for the code as it is."""

from __future__ import annotations

from scripts.docs import kept


def test_a_line_is_made_once(tmp_path, monkeypatch):
    made: list[int] = []

    def make() -> list[int]:
        made.append(len(made))
        return [*made]

    assert kept.kept("a b", make) == [0] and kept.kept("a b", make) == [0, 1]
    monkeypatch.setattr(kept, "FOLDER", tmp_path)
    assert kept.kept("a b", make) == kept.kept("a b", make) == [0, 1, 2]
    assert kept.kept("c/d", make) == [0, 1, 2, 3]
    monkeypatch.setattr(kept, "code", lambda: "other")
    assert kept.kept("a b", make) == [0, 1, 2, 3, 4]
