"""Tasks as tables: a country, an animal or a food, as a name or a picture, and what is asked of it.

Six tasks are those of Luo et al. 2025 (arXiv 2410.22330), on entities and pictures that may be
redistributed; the others ask more of the same entities.
"""

from __future__ import annotations

from vlm_lens.tasks.draws import draw_examples
from vlm_lens.tasks.registry import EXTRA_TASKS, PAPER_TASKS, TaskSpec
from vlm_lens.tasks.rows import Modality, Row, Split, TaskError
from vlm_lens.tasks.task import Task

__all__ = [
    "EXTRA_TASKS",
    "PAPER_TASKS",
    "Modality",
    "Row",
    "Split",
    "Task",
    "TaskError",
    "TaskSpec",
    "draw_examples",
]
