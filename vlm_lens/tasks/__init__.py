"""Tasks as tables: a country, an animal or a food, as a name or a picture, and what is asked of it.

Six tasks are those of Luo et al. 2025 (arXiv 2410.22330), on entities and pictures that may be
redistributed; the others ask more of the same entities. The grid tasks are drawn, for teaching and
for scoring methods that say where an answer comes from. The word tasks have no pictures; a small
real language model can do them.
"""

from __future__ import annotations

from vlm_lens.tasks.contents import contents
from vlm_lens.tasks.draws import draw_examples
from vlm_lens.tasks.grids import Scene, draw_scene, grid_rows
from vlm_lens.tasks.localisation import Localisation, localise
from vlm_lens.tasks.registry import EXTRA_TASKS, GRID_TASKS, PAPER_TASKS, WORD_TASKS, TaskSpec
from vlm_lens.tasks.rows import Modality, Row, Split, TaskError
from vlm_lens.tasks.task import Task
from vlm_lens.tasks.words import draw_words

__all__ = [
    "EXTRA_TASKS",
    "GRID_TASKS",
    "PAPER_TASKS",
    "WORD_TASKS",
    "Localisation",
    "Modality",
    "Row",
    "Scene",
    "Split",
    "Task",
    "TaskError",
    "TaskSpec",
    "contents",
    "draw_examples",
    "draw_scene",
    "draw_words",
    "grid_rows",
    "localise",
]
