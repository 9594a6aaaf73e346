"""The conformance suite: run it on your own model before you trust what it says."""

from __future__ import annotations

from vlm_lens.testing.check import check, level_of
from vlm_lens.testing.conformance import conformance
from vlm_lens.testing.report import CheckResult, Report

__all__ = ["CheckResult", "Report", "check", "conformance", "level_of"]
