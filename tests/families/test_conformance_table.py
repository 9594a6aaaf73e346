"""The published table of families is what the conformance suite says today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_table_is_not_stale():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "conformance_table.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
