"""Information flow: which positions the answer reads from which, at which blocks.

Attention knockout in windows of blocks (Geva et al. 2023, arXiv 2304.14767; for vision-language
models Zhang et al. 2024, arXiv 2411.18620):

    change(edge, window) = (p_blocked - p) / p

with p the probability of the answer that the model itself gives without interventions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from vlm_lens.interventions import AttentionKnockout
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import At, Generated, Position
from vlm_lens.measures import AnswerProb, Measure, Prob
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.scoring import bootstrap
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.vector_sources import few_shot
from vlm_lens.recipes.result import Result
from vlm_lens.sweep import Variant
from vlm_lens.tasks import Task
from vlm_lens.terms import CUT_EDGES, MEAN, RANDOM_KEYS

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["InformationFlow", "InformationFlowResult"]


@dataclass(frozen=True)
class InformationFlow(TaskRecipe):
    """Cuts attention from groups of positions to others, one window of blocks at a time.

    The groups are the query's `input` (its picture, or its words), the `question` (all other
    positions before the last: template, examples, instruction) and the `last` position. Only
    direct edges are cut: what a key gave to other positions in earlier blocks still flows. The
    control cuts as many keys as the input has, drawn at random among all positions before the
    last.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        query: Whether inputs are given by picture or by name.
        n_examples: How many examples of the same modality stand before the query; with 0 the
            query stands alone, and the answer is whatever the model says to that.
        window: How many blocks are cut together.
        rows: How many queries a task.
        answer_tokens: How many tokens of the answer count; more than one are teacher-forced, and
            edges to the last position are cut where each of them is predicted.
        seed: The seed of examples and of the control.
        split: Whose rows are the queries.
    """

    query: Literal["image", "text"] = "image"
    n_examples: int = 2
    window: int = 3
    rows: int = 20
    answer_tokens: int = 1
    seed: int = 1
    split: Literal["validation", "test"] = "test"

    def measure(self, vlm: HookedVLM) -> InformationFlowResult:
        """One sweep for each query."""
        records, answers = [], []
        for task in self.chosen_tasks():
            inputs = [row.given(self.query) for row in task.rows(self.split)]
            for row, raw in enumerate(self.progress(self.prompts(task), f"{task.name}: knockout")):
                prompt = vlm.as_prompt(raw)
                groups = positions(prompt.layout, None if self.query == "image" else inputs[row])
                generator = np.random.default_rng([self.seed, row])
                answer = vlm.generate(prompt, max_new_tokens=self.answer_tokens)
                found = self.swept(vlm, prompt, groups, answer.tokens[0].tolist(), generator)
                records += [{"task": task.name, "row": row, **one} for one in found]
                answers.append({"task": task.name, "row": row, "answer": answer.text[0].strip()})
        return _result(pd.DataFrame(records), pd.DataFrame(answers), self.window)

    def prompts(self, task: Task) -> tuple[RawPrompt, ...]:
        """The queries, with examples before them."""
        if self.n_examples:
            found = few_shot(
                task, self.query, self.query, seed=self.seed, n=self.n_examples, split=self.split
            )
        else:
            found = tuple(task.query(row, self.query) for row in task.rows(self.split))
        return found[: self.rows]

    def swept(
        self,
        vlm: HookedVLM,
        prompt: Prompt,
        groups: dict[str, list[int]],
        answer: list[int],
        generator: np.random.Generator,
    ) -> list[dict[str, Any]]:
        """The answer's probability for each edge and window, beside that of the plain run."""
        ends = {i for i in (getattr(vlm.tokenizer, "eos_token_id", None),) if i is not None}
        kept = [t for i, t in enumerate(answer) if i == 0 or t not in ends]
        measure: Measure = Prob(kept[0]) if len(kept) == 1 else AnswerProb((tuple(kept),))
        column = "prob" if len(kept) == 1 else "answer_prob"
        drawn = generator.permutation(len(groups["input"]) + len(groups["question"]))
        before = np.array([*groups["input"], *groups["question"]])
        groups[RANDOM_KEYS] = sorted(before[drawn[: len(groups["input"])]].tolist())
        variants = []
        for keys, queries in CUT_EDGES:
            if not groups[keys] or not groups[queries]:
                continue
            looking: Position = At(tuple(groups[queries]))
            if queries == "last" and len(kept) > 1:
                looking = looking + Generated()  # where the answer's other tokens are predicted
            edit = AttentionKnockout(queries=looking, keys=groups[keys])
            variants += [
                Variant(replace(edit, layers=blocks), {"edge": f"{keys} -> {queries}", "window": w})
                for w, blocks in enumerate(windows(vlm.cfg.n_layers, self.window))
            ]
        result = vlm.sweep(prompt, variants, measure=measure, progress=False)
        plain = result.baseline[0][column]
        return [
            {"edge": r["edge"], "layer": r["window"], "p": plain, "p_cut": r[column],
             "change": (r[column] - plain) / plain}
            for r in result.records
        ]  # fmt: skip

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(1, "window", "rows", "answer_tokens")
        self.at_least(0, "n_examples")
        fewest, task, _ = self.fewest_rows(self.split)
        if fewest <= self.n_examples:
            raise RecipeError(
                f"{self.named('n_examples')} is {self.n_examples}; {task} has {fewest} rows."
            )

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that a model that is to see pictures can, and has as many blocks."""
        self.must_see(vlm, "query")
        if self.window > vlm.cfg.n_layers:
            raise RecipeError(
                f"{self.named('window')} is {self.window}; the model has {vlm.cfg.n_layers} blocks."
            )


def windows(n_layers: int, size: int) -> list[tuple[int, ...]]:
    """For each block, the blocks of a window around it, cut at both ends of the stack."""
    before = (size - 1) // 2
    return [
        tuple(range(max(0, n - before), min(n_layers, n - before + size))) for n in range(n_layers)
    ]


def positions(layout: Layout, words: str | None) -> dict[str, list[int]]:
    """The positions of the query's input, of all else before the last, and the last.

    Args:
        layout: The prompt's.
        words: The input, where it is given in words; `None` for the last picture.
    """
    given = list(layout.images[-1].positions) if words is None else layout.span(words, -1)
    inside = set(given)
    question = [p for p in range(layout.start, layout.last) if p not in inside]
    return {"input": given, "question": question, "last": [layout.last]}


class InformationFlowResult(Result):
    """Relative change of the answer's probability when an edge is cut.

    `table` has a row for each `task` (and their `mean`), `edge` and `layer` (the 0-based block in
    the middle of the window): `change`, from -1 (the answer is gone) to 0 (nothing happens) and
    above, with `low` and `high`, a 95 % interval by resampling queries. `tables["rows"]` has every
    query, `tables["answers"]` what the model said.
    """

    def plots(self) -> dict[str, go.Figure]:
        """The change against the block, one line an edge."""
        from vlm_lens.figures.flow import flow_figure

        window = self.values["window"]
        many = self.table["task"].nunique() > 1
        shown = self.table[self.table["task"] == MEAN] if many else self.table
        return {
            "flow": flow_figure(
                shown, title=self.title,
                subtitle=f"Attention cut in windows of {window} blocks; band: 95 % over queries",
            )
        }  # fmt: skip


def _result(rows: pd.DataFrame, answers: pd.DataFrame, window: int) -> InformationFlowResult:
    table = []
    for (edge, layer), mine in rows.groupby(["edge", "layer"], sort=False):
        by_task = {name: one["change"].to_numpy() for name, one in mine.groupby("task", sort=False)}
        for name, values in by_task.items():
            low, high = bootstrap([values])
            table.append((name, edge, layer, values.mean(), low, high))
        if len(by_task) > 1:
            low, high = bootstrap(list(by_task.values()))
            mean = float(np.mean([v.mean() for v in by_task.values()]))
            table.append((MEAN, edge, layer, mean, low, high))
    columns = ["task", "edge", "layer", "change", "low", "high"]
    notes = (
        f"Attention is cut in windows of {window} blocks around each block; `change` is relative "
        "to the probability of the answer that the model gives without interventions. Direct "
        "edges only.",
    )
    return InformationFlowResult(
        pd.DataFrame(table, columns=columns), {"rows": rows, "answers": answers},
        {"window": window}, notes,
    )  # fmt: skip
