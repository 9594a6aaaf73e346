"""One call, and one command, on a model that a user brings."""

from __future__ import annotations

import pytest
import tiny
from families.texts import build
from typer.testing import CliRunner

from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.cli import app
from vlm_lens.testing import check, level_of

ONLY = ("forward equals Hugging Face", "every point fires", "parts sum to the residual stream")


def test_a_report_says_what_was_found_and_what_holds(tmp_path):
    report = check(tiny.save("siglip-mistral", tmp_path), only=ONLY)
    assert report.passed and [r.name for r in report.results] == list(ONLY)
    said = dict(report.found)
    assert said["text blocks"] == "2, shown at the level 'full'"
    assert "in the tower" in said["points"]
    assert "level 'full'" in repr(report) and "every point fires" in repr(report)
    page = report.save_html(tmp_path / "report.html").read_text()
    assert "every point fires" in page and "level &#x27;full&#x27;" in page


def test_levels():
    found = {name: level_of(HookedVLM(build(name))) for name in ("gpt2", "mixtral", "mamba2")}
    assert found == {"gpt2": "full", "mixtral": "branches", "mamba2": "residual"}


def test_without_a_processor_it_is_told_what_to_call():
    with pytest.raises(VLMLensError, match="conformance\\(vlm, inputs\\)"):
        check(HookedVLM(build("gpt2")))


@pytest.mark.slow
def test_the_command(tmp_path):
    folder = tiny.save("qwen2", tmp_path / "qwen2")
    page = str(tmp_path / "a.html")
    shown = CliRunner().invoke(app, ["models", "--check", str(folder), "--html", page])
    assert shown.exit_code == 0, shown.output
    assert "writing back restores" in shown.output and "FAILED" not in shown.output
    assert "writing back restores" in (tmp_path / "a.html").read_text()
    refused = CliRunner().invoke(app, ["models", "--check", "no-such-model"])
    assert refused.exit_code == 1 and "not a zoo model" in refused.output
