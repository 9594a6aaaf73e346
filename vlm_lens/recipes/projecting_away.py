"""Projecting away: does a model still name an object whose direction is taken out of the picture?

Jiang et al. 2025 (arXiv 2410.02762): the hidden state `t` of an object's name, read from text at
one block, is taken out of the positions of the picture wherever they point along it,
`h - gamma max(h.t, 0) / |t|^2 t`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlm_lens.directions.confidence import internal_confidence
from vlm_lens.interventions.project_away import ProjectAway
from vlm_lens.layout.positions import At, Images
from vlm_lens.measures import Prob
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import Recipe, RecipeError, Result
from vlm_lens.tasks import Row, Task, TaskError

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["ProjectingAway", "ProjectingAwayResult"]

_METHODS = ("own", "other", "random")


@dataclass(frozen=True)
class ProjectingAway(Recipe):
    """Takes the direction of an object's name out of its picture, block by block.

    Per block, the probability that the bare picture is answered with the object's name: `plain`;
    with the object's own direction projected away, `own`; and two controls, the direction of
    another object of the same task, `other`, and a `random` one. A method that removes an object
    lowers `own` and leaves the controls.

    Attributes:
        task: Whose rows are the objects; a model must answer their bare pictures by name.
        rows: How many of the test rows.
        gamma: How much of the direction is taken: 1 takes all.
        seed: Of the random directions, and of which objects are absent.
    """

    task: str
    rows: int = field(default=16, kw_only=True)
    gamma: float = field(default=1.0, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def measure(self, vlm: HookedVLM) -> ProjectingAwayResult:
        """Every object, at every block."""
        task = Task.load(self.task)
        shown = [row for row in task.test if row.image is not None][: self.rows]
        own = [_name_states(vlm, task, row) for row in shown]
        draw = torch.Generator().manual_seed(self.seed)
        records, confidences = [], []
        for i, row in enumerate(shown):
            absent = shown[(i + 1) % len(shown)]
            prompt = vlm.prompt(task.query(row, "image"))
            directions = {"own": own[i], "other": own[(i + 1) % len(shown)],
                          "random": torch.randn(own[i].shape, generator=draw)}  # fmt: skip
            edits = [
                ProjectAway(f"blocks.{layer}.hook_resid_post", Images(), of[layer], self.gamma)
                for of in directions.values()
                for layer in range(vlm.cfg.n_layers)
            ]
            found = vlm.sweep(prompt, edits, measure=Prob(row.input), progress=False)
            numbers = iter(record["prob"] for record in found.records)
            plain = found.baseline[0]["prob"]
            for method in directions:
                for layer in range(vlm.cfg.n_layers):
                    records.append((row.input, layer, method, next(numbers), plain))
            sure = internal_confidence(vlm, prompt, [row.input, absent.input])
            most = sure.max("layer", "position").values.to_numpy()
            confidences.append((row.input, absent.input, float(most[0]), float(most[1])))
        columns = ["object", "layer", "method", "prob", "plain"]
        each = pd.DataFrame(records, columns=columns)
        table = each.pivot_table(index="layer", columns="method", values="prob")[list(_METHODS)]
        table.insert(0, "plain", each.groupby("layer")["plain"].mean())
        pairs = pd.DataFrame(confidences, columns=["shown", "absent", "c_shown", "c_absent"])
        auc = _auc(pairs["c_shown"].to_numpy(), pairs["c_absent"].to_numpy())
        notes = (
            f"Internal confidence tells the object shown from one that is not with an AUC of "
            f"{auc:.2f} over {len(pairs)} pictures (0.5 by chance).",
        )
        return ProjectingAwayResult(
            table.rename_axis(columns=None).reset_index(),
            {"objects": each, "confidence": pairs}, {"auc": auc, "gamma": self.gamma}, notes,
        )  # fmt: skip

    def validate(self) -> None:
        """Checks the fields."""
        self.at_least(2, "rows")
        try:
            task = Task.load(self.task)
        except TaskError as error:
            raise RecipeError(f"{self.named('task')}: {error}") from None
        if sum(row.image is not None for row in task.test) < 2:
            raise RecipeError(f"{self.named('task')}: {self.task} has no pictures.")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that the model sees pictures."""
        if not vlm.family.takes_images:
            raise RecipeError(f"ProjectingAway needs a model that sees pictures, not {vlm.name}.")


class ProjectingAwayResult(Result):
    """The probability of the object's name, by block.

    `table` has a row a 0-based block: `plain`, `own`, `other`, `random`, means over objects.
    `tables["objects"]` has every object, `tables["confidence"]` the internal confidence of the
    object shown and of one that is not; `values["auc"]` says how well it tells them apart.
    """

    def plots(self) -> dict[str, go.Figure]:
        """The probability against the block, a line a direction."""
        figures = super().plots()
        title = {"title_text": "probability of the object's name", "range": [0, 1.05]}
        figures["figure"].update_yaxes(**title)
        return figures


def _name_states(vlm: HookedVLM, task: Task, row: Row) -> Tensor:
    """The state of the last token of an object's name in its text query, `[layers, d]`."""
    prompt = vlm.prompt(task.query(row, "text"))
    last = list(prompt.layout.span(row.input, -1))[-1]
    _, cache = vlm.run_with_cache(
        prompt, names_filter="blocks.*.hook_resid_post", positions=At(last), device="cpu",
        last_logits=1,
    )  # fmt: skip
    return cache.stack("resid_post")[:, 0, 0]


def _auc(high: np.ndarray, low: np.ndarray) -> float:
    """The probability that one of the first is above one of the second; a tie counts half."""
    return float(((high[:, None] > low) + 0.5 * (high[:, None] == low)).mean())
