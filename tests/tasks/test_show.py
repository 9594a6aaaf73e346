"""How tasks are shown."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlm_lens.tasks import Row, Task


def test_html_shows_pictures() -> None:
    text = Task.load("country-capital")._repr_html_()
    assert text.count("<img") == 6
    assert "30 validation + 100 test rows" in text
    assert "The capital city of the country:" in text


def test_html_never_raises(tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    Image.new("RGB", (2, 2)).save(path)
    rows = [("<b>", path, "x"), Row("no picture", "y")]
    task = Task.from_rows("t", rows, instruction="a < b:", validation=1)
    path.unlink()
    text = task._repr_html_()
    assert "<img" not in text
    assert "&lt;b&gt;" in text
    assert "a &lt; b:" in text


def test_dataframe() -> None:
    frame = Task.load("country-capital").to_dataframe()
    assert list(frame.columns) == ["input", "output", "aliases", "image", "split"]
    assert len(frame) == 130
    row = frame[frame["input"] == "Brazil"].iloc[0]
    assert (row["output"], row["aliases"], row["split"]) == ("Brasilia", "Brasília", "validation")
    assert Path(row["image"]).name == "br.png"
