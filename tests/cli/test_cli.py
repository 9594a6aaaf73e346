"""The command line."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner

from vlm_lens.cli import app

run = CliRunner().invoke


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
