"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from vlm_lens import zoo
from vlm_lens.cli import app
from vlm_lens.families import families
from vlm_lens.families.llava import LlavaFamily
from vlm_lens.model.checkpoints import CHECKPOINTS

run = CliRunner().invoke


@pytest.mark.parametrize("columns", [80, 200])
def test_models_lists_families_zoo_and_checkpoints(columns):
    shown = run(app, ["models"], env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0
    names = {line.split()[0] for line in shown.output.splitlines() if line.startswith(" ")}
    assert {f.name for f in families().values()} <= names
    assert {*zoo.names(), *CHECKPOINTS} <= names
    assert max(map(len, shown.output.splitlines())) <= columns


def test_models_says_what_a_family_is():
    shown = run(app, ["models"], env={"COLUMNS": "400"}).output
    lines = {line.split()[0]: line for line in shown.splitlines() if line.split()}
    assert "a perceiver that makes 64 latents a picture" in lines["idefics2"]
    assert "runs in full: its text model reads pictures by cross-attention" in lines["mllama"]
    assert "no pictures" in lines["decoder"] and "persimmon" in lines["decoder"]
    checkpoint = lines["idefics2-8b"]
    for word in ("HuggingFaceM4/idefics2-8b", "2c42686c", "16", "do_image_splitting=False"):
        assert word in checkpoint


def test_models_takes_families_of_others(monkeypatch):
    class Own(LlavaFamily):
        """A family."""

        name, model_types = "own", ("own-type",)
        not_replayable = "it looks back"

    monkeypatch.setitem(sys.modules[families.__module__]._FAMILIES, "own-type", Own())
    shown = run(app, ["models"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    assert "own-type" in shown.output and "it looks back" in shown.output


def test_points_prints_the_table_of_a_glob():
    shown = run(app, ["points", "toy-llava", "vision.*resid_post"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "vision.blocks.*.hook_resid_post" in shown.output
    assert "hook_embed" not in shown.output


def test_an_error_is_one_message_without_traceback():
    shown = run(app, ["points", "toy-llava", "nothing*here"])
    assert shown.exit_code == 1
    assert "PointError" in shown.output and "Traceback" not in shown.output
    shown = run(app, ["points", "toy-lava"])
    assert shown.exit_code == 1 and "ModelError" in shown.output
    assert "Did you mean 'toy-llava'" in " ".join(shown.output.split())


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom vlm_lens.cli import app\n"
        "try:\n    app(['--help'], prog_name='vlm-lens')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'plotly', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "models" in done.stdout and "points" in done.stdout


def test_python_m_works():
    done = subprocess.run(
        [sys.executable, "-m", "vlm_lens", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "vlm-lens" in done.stdout


@pytest.mark.slow
def test_demo_writes_report_tables_and_provenance(tmp_path):
    shown = run(app, ["demo", "--out", str(tmp_path), "--seeds", "1"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for word in ("No Context", "Prompt", "Patch", "Random vector", "mean", "embedding", "report"):
        assert word in shown.output
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    for folder in ("transfer", "phases-text", "phases-image"):
        about = json.loads((tmp_path / folder / "provenance.json").read_text())
        assert about["provenance"]["model"]["name"] == "toy-llava"
    assert (tmp_path / "transfer" / "layers.csv").exists()
