"""Rows and their pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from vlm_lens.tasks import Row, TaskError
from vlm_lens.tasks.rows import check_rows, make_row


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    path = tmp_path / "flag.png"
    Image.new("P", (10, 4)).save(path)
    return path


def test_picture_is_opened_lazily_as_it_is_and_kept(flag: Path) -> None:
    row = Row("Peru", "Lima", picture=flag)
    assert "image" not in vars(row)
    assert (row.image.mode, row.image.size) == ("P", (10, 4))
    assert row.image is row.image


def test_width_keeps_the_aspect(flag: Path) -> None:
    assert Row("Peru", "Lima", picture=flag, width=5).image.size == (5, 2)


def test_answers_and_value_semantics(flag: Path) -> None:
    row = Row("Brazil", "Brasilia", ("Brasília",), flag)
    assert row.answers == ("Brasilia", "Brasília")
    assert row == Row("Brazil", "Brasilia", ("Brasília",), flag)
    assert len({row, Row("Brazil", "Brasilia", ("Brasília",), flag)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.output = "Rio"


def test_given(flag: Path) -> None:
    row = Row("Peru", "Lima", picture=flag)
    assert row.given("text") == "Peru"
    assert row.given("image") is row.image
    with pytest.raises(TaskError, match="'text', 'image' or 'description', not 'audio'"):
        row.given("audio")
    with pytest.raises(TaskError, match="has no picture"):
        Row("Peru", "Lima").given("image")


def test_picture_that_breaks_later(tmp_path: Path, flag: Path) -> None:
    row = make_row("Peru", flag, "Lima")
    flag.unlink()
    with pytest.raises(TaskError, match="picture of 'Peru' is gone"):
        _ = row.image
    whole = tmp_path / "noise.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:600])
    with pytest.raises(TaskError, match="picture of 'Peru' cannot be read"):
        _ = make_row("Peru", cut, "Lima").image


def test_make_row(flag: Path) -> None:
    assert make_row("Peru", "flag.png", ["Lima", "lima"], folder=flag.parent) == Row(
        "Peru", "Lima", ("lima",), flag
    )
    assert make_row("Peru", None, "Lima").picture is None
    picture = Image.new("L", (2, 2))
    assert make_row("Peru", picture, "Lima").image is picture


def test_make_row_refuses(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for values, message in (
        ((" ", None, "Lima"), "needs a text as input"),
        ((3, None, "Lima"), "needs a text as input"),
        (("Peru", None, ""), "needs a text as output"),
        (("Peru", None, []), "needs a text as output"),
        (("Peru", 3, "Lima"), "pass a PIL picture or the path"),
        (("Peru", tmp_path / "none.png", "Lima"), "is not there: .*none.png"),
        (("Peru", text, "Lima"), "no picture that Pillow knows: .*text.png"),
    ):
        with pytest.raises(TaskError, match=message):
            make_row(*values)


def test_a_picture_of_too_many_pixels_is_said(flag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = make_row("Peru", flag, "Lima")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(TaskError, match="more than 2 pixels.*MAX_IMAGE_PIXELS"):
        make_row("Peru", flag, "Lima")
    with pytest.raises(TaskError, match="more than 2 pixels"):
        row.image  # noqa: B018


def test_duplicates_are_named() -> None:
    rows = [Row("Peru", "Lima"), Row("Fiji", "Suva"), Row("Peru", "Cusco")]
    with pytest.raises(TaskError, match="rows with the same input: 'Peru'"):
        check_rows("capital", rows)
