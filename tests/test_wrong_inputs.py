"""Every mistake of `wrong_inputs` is answered in words, before the model is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("wrong_inputs.py")


@pytest.fixture(scope="module")
def answers() -> list[dict]:
    """What a user is told, in a Python of its own: without the tests' type checks."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True, timeout=300
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_are_clear_and_none_is_raw(answers):
    assert len(answers) >= 340
    raw = {a["name"]: (a["error"], a["said"]) for a in answers if not a["own"]}
    assert raw == {}
    unclear = {a["name"]: a["said"] for a in answers if a["words"] not in a["said"]}
    assert unclear == {}


def test_the_model_was_not_run_for_any(answers):
    assert [a["name"] for a in answers if a["ran"]] == []
