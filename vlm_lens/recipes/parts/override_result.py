"""What task overriding gives: answers, verdicts, and shares by pair of tasks and method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from vlm_lens.keywords import Answering
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.judges import (
    Case,
    Judge,
    JudgeError,
    Wanted,
)
from vlm_lens.recipes.parts.scoring import bootstrap, prefix_match
from vlm_lens.recipes.result import Result
from vlm_lens.terms import BOTH, MEAN, OVERRIDING, VERDICTS

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["OverrideItem", "OverrideResult", "result", "verdicts"]


MISSING = "missing"


@dataclass(frozen=True)
class OverrideItem(Answering):
    """One input with two tasks.

    Attributes:
        given: The picture, or a text.
        original: The task that the prompt asks for.
        overriding: The task that is to take its place; its vector is read at its last token (the
            paper ends it in a colon).
        prompt: The prompt, if it is not to be written from `given` and `original`.
        group: What the item is counted with.
        name: What it is called in the table of answers.
    """

    given: Image.Image | str
    original: Wanted
    overriding: Wanted
    prompt: RawPrompt | None = None
    group: str = "items"
    name: str = ""


def verdicts(
    judge: Judge, method: str, items: Sequence[OverrideItem], texts: Iterable[str]
) -> pd.DataFrame:
    """What the judge says of every answer; where it cannot say, the choice is `missing`.

    Raises:
        RecipeError: The judge gives something else than one of the choices.
    """
    rows = []
    for item, text in zip(items, texts, strict=True):
        try:
            found = judge(Case(text, item.original, item.overriding))
        except JudgeError:  # one verdict is worth less than all answers
            found = MISSING
        if found not in (*VERDICTS, MISSING):
            raise RecipeError(f"A judge gives one of {', '.join(VERDICTS)}; this gave {found!r}.")
        line = text.strip().split("\n")[0]
        right = prefix_match(line, item.overriding.answers, ignore_case=True)
        rows.append((item.group, method, item.name, item.original.question,
                     item.overriding.question, text, found, right))  # fmt: skip
    columns = ["task", "method", "input", "original", "overriding", "prediction", "choice", "right"]
    return pd.DataFrame(rows, columns=columns)


def result(answers: pd.DataFrame, layer: int, judge: Judge) -> OverrideResult:
    """Shares by group and method, and their mean over groups.

    Args:
        answers: What `verdicts` gave, of every method.
        layer: The block patched.
        judge: Who judged.
    """
    groups, rows = list(dict.fromkeys(answers["task"])), []
    for method in dict.fromkeys(answers["method"]):
        mine = [answers[(answers["method"] == method) & (answers["task"] == g)] for g in groups]
        for name, parts in [*((g, [p]) for g, p in zip(groups, mine, strict=True)), (MEAN, mine)]:
            judged = [p[p["choice"] != MISSING] for p in parts]
            judged = [p for p in judged if len(p)]
            row = {"task": name, "method": method, "accuracy": np.nan, "low": np.nan,
                   "high": np.nan}  # fmt: skip
            if judged:
                done = [p["choice"].isin((OVERRIDING, BOTH)).to_numpy(dtype=float) for p in judged]
                row["accuracy"] = float(np.mean([d.mean() for d in done]))
                row["low"], row["high"] = bootstrap(done)
            row["strict"] = float(np.mean([p["right"].mean() for p in parts]))
            for one in VERDICTS:
                share = [(p["choice"] == one).mean() for p in judged]
                row[f"judged_{one}"] = float(np.mean(share)) if share else np.nan
            missing = sum(map(len, parts)) - sum(map(len, judged))
            rows.append({**row, "queries": sum(map(len, parts)), "missing": missing})
    notes = (
        f"accuracy: share of answers that do the overriding task, alone or with the original, by "
        f"{getattr(judge, '__name__', judge)!s}; strict: that begin with its right answer.",
        f"Patched: the output of block {layer} (0-based), at the prompt's last position. 95 %: "
        "bootstrap over inputs.",
    )
    missing = int((answers["choice"] == MISSING).sum())
    if missing:
        notes += (f"The judge gave no verdict on {missing} of {len(answers)} answers; shares are "
                  "of the others.",)  # fmt: skip
    return OverrideResult(pd.DataFrame(rows), {"predictions": answers}, {"layer": layer}, notes)


class OverrideResult(Result):
    """Shares of answers that do the overriding task, by pair of tasks and method.

    `table` has the columns `accuracy` (the share), `low`, `high`, `strict`, and `judged_...`, the
    share of each verdict, and `missing`, the number of answers without one; these are in no share.
    `tables["predictions"]` has every answer with its verdict.
    """

    def summary(self) -> pd.DataFrame:
        """Methods by pairs of tasks, with the mean's interval."""
        groups = list(dict.fromkeys(self.table["task"]))
        methods = list(dict.fromkeys(self.table["method"]))
        wide = self.table.pivot(index="method", columns="task", values="accuracy")
        wide = wide.loc[methods, groups].round(3)
        mean = self.table[self.table["task"] == MEAN].set_index("method").loc[methods]
        bounds = zip(mean["low"], mean["high"], strict=True)
        wide["95 %"] = ["-" if np.isnan(low) else f"{low:.2f}-{high:.2f}" for low, high in bounds]
        wide["strict"] = mean["strict"].round(3)
        return wide.reset_index().rename_axis(columns=None)

    def plots(self) -> dict[str, go.Figure]:
        """The verdicts by method."""
        from vlm_lens.figures.override import override_bars

        return {"override": override_bars(self.table, layer=self.values["layer"])}
