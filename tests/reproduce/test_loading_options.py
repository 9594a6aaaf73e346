"""The options --dtype, --device and --load-in-4bit, as commands take them."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from vlm_lens.cli import app
from vlm_lens.cli.common import loading
from vlm_lens.errors import ModelError


def test_run_loads_the_model_as_asked(tmp_path):
    recipe = tmp_path / "one.yaml"
    recipe.write_text("recipe: TopDecodings\ntasks: food-color\nsources: [instruction]\n")
    command = ["run", str(recipe), "--model", "toy-llava", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--dtype", "bfloat16", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())["provenance"]["model"]
    assert about["dtype"] == "bfloat16" and about["device"] == "cpu"


def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ModelError, match="--dtype float17"):
        loading("float17", None)
    missing = "needs CUDA|needs bitsandbytes"
    with pytest.raises(ModelError, match=missing):
        loading(None, "cpu", load_in_4bit=True)
    assert loading("bfloat16", "cpu") == {"device": "cpu", "dtype": torch.bfloat16}
    assert loading(None, None) == {}
