"""A recipe of one's own: accuracy against the scale of the vector, over a range of blocks."""

from dataclasses import dataclass

import pandas as pd

from vlm_lens import ActivationPatch, Find, Last, TaskVector
from vlm_lens.recipes import Recipe
from vlm_lens.recipes.parts.scoring import accuracy
from vlm_lens.tasks import Task


@dataclass(frozen=True)
class ScaleSweep(Recipe):
    """Writes a scaled task vector into each block of a range at once."""

    task: str
    blocks: tuple[int, ...] = (3, 4)
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)

    def measure(self, vlm):
        """Accuracy on queries that show a picture, at each scale."""
        task = Task.load(self.task)
        vector = TaskVector.read(vlm, task.example_sets("text", seed=1), at=Find(":", -3))
        queries = [task.query(row, "image") for row in task.test]
        answers = [row.answers for row in task.test]
        rows = []
        for scale in self.progress(self.scales, "scales"):
            point = "blocks.{}.hook_resid_post"
            patch = [ActivationPatch(point.format(i), Last(), scale * vector) for i in self.blocks]
            rows.append((scale, accuracy(vlm, queries, answers, interventions=patch)))
        return pd.DataFrame(rows, columns=["scale", "accuracy"])
