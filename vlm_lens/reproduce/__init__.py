"""Experiments of Luo et al. 2025 (arXiv 2410.22330), run and set beside the paper's numbers.

from vlm_lens.reproduce import execute, make_plan, write_report

plans = make_plan(["table2", "figure8"], ["toy-llava"], seeds=1, out="out")
write_report("out", [execute(plan) for plan in plans])
"""

from __future__ import annotations

from vlm_lens.reproduce import paper
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding
from vlm_lens.reproduce.experiments import choose, experiments
from vlm_lens.reproduce.plan import ModelPlan, make_plan
from vlm_lens.reproduce.report import write_report
from vlm_lens.reproduce.runner import Outcome, execute
from vlm_lens.reproduce.setup import ReproduceError, Setup

__all__ = [
    "Comparison",
    "Experiment",
    "Finding",
    "ModelPlan",
    "Outcome",
    "ReproduceError",
    "Setup",
    "choose",
    "execute",
    "experiments",
    "make_plan",
    "paper",
    "write_report",
]
