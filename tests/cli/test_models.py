"""`vlm-lens models` and `vlm-lens points`."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

import vlm_lens
from vlm_lens import HookedVLM, zoo
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


@pytest.mark.parametrize("columns", [80, 100, 130])
def test_models_never_cuts_what_is_copied(columns):
    said = run(app, ["models"], env={"COLUMNS": str(columns)}).output
    words = set(said.split())
    for one in CHECKPOINTS.values():
        assert {one.name, one.repo, one.revision[:8]} <= words
    assert {*zoo.names(), *(f.name for f in families().values())} <= words
    assert "…" not in said and max(map(len, said.splitlines())) <= columns
    types = {word.strip(",") for word in words}
    assert set(families()) <= types


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


@pytest.mark.parametrize("columns", [80, 200])
def test_points_never_cuts_a_name(columns):
    said = run(app, ["points", "toy-llava"], env={"COLUMNS": str(columns)}).output
    words = set(said.split())
    groups = HookedVLM.from_pretrained("toy-llava").points().groups()
    assert set(groups) <= words and "…" not in said


def test_the_version_is_said():
    said = run(app, ["--version"])
    assert said.exit_code == 0 and said.output.strip() == f"vlm-lens {vlm_lens.__version__}"
