"""`vlm-lens explore`."""

from __future__ import annotations

import pytest
from explorer import decoded
from PIL import Image
from typer.testing import CliRunner

from vlm_lens.cli import app

run = CliRunner().invoke


def test_a_picture_of_ones_own(tmp_path):
    Image.new("RGB", (50, 30), "navy").save(tmp_path / "mine.png")
    out = tmp_path / "page.html"
    shown = run(app, ["explore", "--model", "toy-llava", "--image", str(tmp_path / "mine.png"),
                      "--task", "food-color", "--out", str(out)])  # fmt: skip
    assert shown.exit_code == 0, shown.output
    [model] = decoded.data(out.read_text(encoding="utf-8"))["models"]
    [scene] = model["scenes"]
    assert scene["name"] == "mine.png" and set(scene["written"]) == {"food-color"}
    assert scene["pictures"][0]["width"] == 50


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--image", "none.png"], "no such file"),
        (["--out", "page.pdf"], "html"),
        (["--task", "country-capitol"], "country-capital"),
        (["--serve", "--out", "page.html"], "leave --out away"),
        (["--serve", "--model", "toy-fuyu"], "give --model once"),
        (["--serve", "--port", "70000"], "choose another"),
    ],
)
def test_what_is_wrong_is_said(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run(app, ["explore", "--model", "toy-llava", *options])
    assert shown.exit_code == 1 and told in " ".join(shown.output.split())


@pytest.mark.slow
def test_the_page_of_the_models_that_ship(tmp_path):
    out = tmp_path / "page.html"
    shown = run(app, ["explore", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert out.stat().st_size < 8_000_000
    models = decoded.data(out.read_text(encoding="utf-8"))["models"]
    assert [m["name"] for m in models] == ["toy-llava", "toy-idefics2", "toy-fuyu"]
    for model in models:
        first = model["scenes"][0]
        runs = [run for vector in first["expected"] for run in first["written"][vector].values()]
        assert any(run["right"][0] for run in runs) and len(model["scenes"]) == 12
