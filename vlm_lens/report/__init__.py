"""Reports: one HTML file with text, tables and figures, which needs no network."""

from __future__ import annotations

from vlm_lens.report.demo import demo_report
from vlm_lens.report.page import Section, page, write_page
from vlm_lens.report.result import result_report

__all__ = ["Section", "demo_report", "page", "result_report", "write_page"]
