"""Phases: what the last delimiter of a few-shot prompt says at each layer.

Luo et al. 2025 (arXiv 2410.22330), section 4.1 and Figures 8, 14 and 15: through the layers the
residual stream decodes first to a token of its input, then to a word for the task, then to the
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from vlm_lens.lenses import LogitLens
from vlm_lens.positions import Last
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.metric import answer_token
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.template import RawPrompt

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["PHASES", "PhaseAnalysis", "PhaseResult", "delimiter_decoding"]

PHASES = ("input", "task", "answer")
BOUNDARIES = ("task_from", "answer_from")
_RESAMPLES = 2000


@dataclass(frozen=True)
class PhaseAnalysis(Recipe):
    """Follows three tokens through the layers with the logit lens.

    Each run is a prompt of examples and an open query, read at its last position, the delimiter
    before the answer. At the embedding and after each block the residual stream is decoded, and
    the probabilities of three tokens are renormalised to sum to one (a softmax over their three
    logits): a token of the input, a word for the task, and the first token of the run's own answer.
    Beside them stand the ranks of the three in the whole vocabulary.

    The token of the input is found on any model: it is what the delimiter's own embedding decodes
    to, the most likely token before the first block, where nothing of the prompt has been mixed in
    yet. On Idefics2 that is the paper's `auf`; with tied embeddings it is the delimiter itself.

    An instruction is one prompt with no answer of its own: each run pairs it with the answer of
    another row, so that its answer curve is the mean over the task's labels.

    Attributes:
        task: The name of a shipped task, or a Task.
        modality: Whether examples and query are given by name or by picture; or the instruction
            alone.
        runs: How many prompts; each has another query, so no more than the split has rows.
        n_examples: How many examples a prompt has.
        seed: The seed of the draw.
        split: Whose rows are drawn.
        input_token: The token for the input; by default the one that the delimiter's own
            embedding decodes to.
        task_token: The word for the task; by default the task's own.
        batch_size: How many prompts run together.
    """

    task: str | Task
    modality: Literal["text", "image", "instruction"] = "text"
    runs: int = 100
    n_examples: int = 5
    seed: int = 1
    split: Literal["validation", "test"] = "test"
    input_token: str | None = None
    task_token: str | None = None
    batch_size: int = 16

    def measure(self, vlm: Any) -> PhaseResult:
        """Probabilities and ranks of the three tokens, by run and layer."""
        task = self.chosen_task()
        prompts = self.prompts(task)
        answers = [row.output for row in task.rows(self.split)][: self.runs]
        input_id = (
            vlm.to_single_token(self.input_token)
            if self.input_token is not None
            else delimiter_decoding(vlm, prompts[0])
        )
        task_id = vlm.to_first_token(self.task_token or task.task_word)
        ids = [(input_id, task_id, answer_token(vlm, answer)) for answer in answers]
        kept = [i for i, three in enumerate(ids) if len(set(three)) == 3]
        if not kept:
            raise RecipeError(
                f"The tokens for input, task and answer must differ; for {task.name} they do in no "
                "run. Set PhaseAnalysis.input_token or .task_token."
            )
        starts = range(0, len(kept), self.batch_size)
        tables = []
        for start in self.progress(starts, f"{task.name}, {self.modality}: logit lens"):
            batch = kept[start : start + self.batch_size]
            tables.append(decode(vlm, [prompts[i] for i in batch], [ids[i] for i in batch], batch))
        runs = pd.concat(tables, ignore_index=True)
        token = vlm.tokenizer.decode
        values = {
            "task": task.name,
            "modality": self.modality,
            "input_token": token([input_id]),
            "task_token": token([task_id]),
        }
        return phases(runs, values, skipped=len(ids) - len(kept))

    def prompts(self, task: Task) -> tuple[RawPrompt, ...]:
        """What is decoded, one prompt a run."""
        if self.modality == "instruction":
            return (RawPrompt(task.instruction),) * min(self.runs, len(task.rows(self.split)))
        return task.example_sets(
            self.modality, seed=self.seed, n=self.n_examples, split=self.split
        )[: self.runs]

    def chosen_task(self) -> Task:
        """The task that the field `task` means."""
        return Task.load(self.task) if isinstance(self.task, str) else self.task

    def validate(self) -> None:
        """Checks the fields."""
        task = self.chosen_task()
        for name in ("runs", "n_examples", "batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"PhaseAnalysis.{name} is {getattr(self, name)}; at least 1.")
        if not (self.task_token or task.task_word):
            raise RecipeError(
                f"The task {task.name!r} has no word for itself: set PhaseAnalysis.task_token."
            )

    def validate_for(self, vlm: Any) -> None:
        """Checks that a model that is to see pictures can."""
        if self.modality == "image" and not vlm.family.takes_images:
            raise RecipeError(f"{vlm.name} takes no pictures: set PhaseAnalysis.modality='text'.")


def delimiter_decoding(vlm: Any, prompt: RawPrompt) -> int:
    """The token that the delimiter decodes to before the first block; the same in every prompt."""
    seen = LogitLens(at=Last(), k=1, embedding=True).run(vlm, prompt)
    return int(seen.rows[0].top_ids[0, 0, 0])


def decode(
    vlm: Any, prompts: Sequence[RawPrompt], ids: Sequence[tuple[int, ...]], runs: Sequence[int]
) -> pd.DataFrame:
    """Probability (renormalised over three) and rank (over all) of each run's three tokens."""
    chosen = sorted({i for three in ids for i in three})
    lens = LogitLens(at=Last(), k=1, tokens=tuple(chosen), embedding=True)
    seen = lens.run(vlm, vlm.prompt(list(prompts)))
    tables = []
    for run, three, row in zip(runs, ids, seen.rows, strict=True):
        columns = [chosen.index(i) for i in three]
        probs = row.token_probs[:, 0, columns].double().numpy()
        probs = np.maximum(probs, np.finfo(np.float64).tiny)
        ranks = row.token_ranks[:, 0, columns].numpy()
        table = pd.DataFrame({"run": run, "layer": range(len(seen.points))})
        for k, phase in enumerate(PHASES):
            table[phase] = probs[:, k] / probs.sum(1)
            table[f"{phase}_rank"] = ranks[:, k]
        table["top_token"] = [seen.labels[int(i)] for i in row.top_ids[:, 0, 0]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


class PhaseResult(Result):
    """Phase curves.

    `table` has one row a layer: for `input`, `task` and `answer` the mean over runs of the
    renormalised probability, its 25th and 75th percentile (`_low`, `_high`) and the median rank in
    the whole vocabulary (`_rank`, 0 for the most likely), and `phase`, the largest mean. Layer 0 is
    the embedding, layer k the output of block k - 1. `tables["runs"]` holds every run.
    """

    @property
    def boundaries(self) -> pd.DataFrame:
        """Where phases begin, with intervals by resampling runs.

        `boundary` is `task_from` or `answer_from`; `layer` its layer (NaN if there is none), `low`
        and `high` the 95 % bootstrap interval, among the share `found` of resamples that have one.
        """
        return self.tables["boundaries"]

    @property
    def phases(self) -> str:
        """The dominant phase of each layer in one letter, embedding first: `"IIITTTAA"`."""
        return "".join(phase[0].upper() for phase in self.table["phase"])

    @property
    def task_from(self) -> int | None:
        """The first layer at which the task's word dominates; None if it never does."""
        return self.values["task_from"]

    @property
    def answer_from(self) -> int | None:
        """The layer from which on the answer dominates to the end; None if not at the end."""
        return self.values["answer_from"]

    def plots(self) -> dict[str, go.Figure]:
        """The three curves with their bands, and the ranks in the whole vocabulary."""
        from vlm_lens.figures.phases import phase_curves, rank_curves

        return {"phases": phase_curves(self), "ranks": rank_curves(self)}

    def summary(self) -> pd.DataFrame:
        """Layer by layer: the three means, the ranks, the phase."""
        columns = ["layer", "where", *PHASES, *(f"{p}_rank" for p in PHASES), "phase"]
        return self.table[columns].round(3)


def phases(runs: pd.DataFrame, values: dict[str, Any], *, skipped: int) -> PhaseResult:
    """Means, percentiles and phases by layer, from every run.

    Args:
        runs: A row for each run and layer.
        values: What the tokens are.
        skipped: How many runs were left out because two of their tokens are one.
    """
    by_layer = runs.groupby("layer")
    table = pd.DataFrame({"layer": sorted(runs["layer"].unique())})
    blocks = [f"block {layer - 1}" for layer in table["layer"][1:]]
    table["where"] = ["embedding", *blocks]
    for phase in PHASES:
        table[phase] = by_layer[phase].mean().to_numpy()
        table[f"{phase}_low"] = by_layer[phase].quantile(0.25).to_numpy()
        table[f"{phase}_high"] = by_layer[phase].quantile(0.75).to_numpy()
        table[f"{phase}_rank"] = by_layer[f"{phase}_rank"].median().to_numpy()
    table["phase"] = table[list(PHASES)].idxmax(axis=1)
    order = list(table["phase"])
    count = int(runs["run"].nunique())
    edges = _boundaries(runs)
    from_layers = {
        row.boundary: None if np.isnan(row.layer) else int(row.layer) for row in edges.itertuples()
    }
    values = {
        **values,
        "runs": count,
        **from_layers,
        "share": {p: order.count(p) / len(order) for p in PHASES},
    }
    said = (
        f"Mean over {count} rows' answers, all on the instruction of {values['task']}."
        if values["modality"] == "instruction"
        else f"Mean over {count} runs of {values['task']} with {values['modality']} examples."
    )
    notes = (
        "Layer 0 is the embedding, layer k the output of block k - 1.",
        f"{said} Input token {values['input_token']!r}, task token {values['task_token']!r}, "
        "answer token: the first of each run's own answer.",
        *(_told(row) for row in edges.itertuples()),
    )
    if skipped:
        notes += (f"{skipped} runs are left out: two of their three tokens are the same.",)
    return PhaseResult(table, {"runs": runs, "boundaries": edges}, values, notes)


def _boundaries(runs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Where the task and the answer begin to lead, and how sure that is over runs."""
    n_layers = runs["layer"].nunique()
    curves = runs.sort_values(["run", "layer"])[list(PHASES)].to_numpy()
    curves = curves.reshape(-1, n_layers * len(PHASES))
    share = np.full(len(curves), 1 / len(curves))
    drawn = np.random.default_rng(seed).multinomial(len(curves), share, _RESAMPLES) / len(curves)
    rows = []
    found, again = (
        _begin((weights @ curves).reshape(-1, n_layers, len(PHASES)).argmax(-1))
        for weights in (share[None], drawn)
    )
    for name in BOUNDARIES:
        there = again[name][~np.isnan(again[name])]
        low, high = (
            np.quantile(there, [0.025, 0.975], method="inverted_cdf")
            if len(there)
            else (np.nan,) * 2
        )
        rows.append((name, found[name][0], low, high, len(there) / _RESAMPLES))
    return pd.DataFrame(rows, columns=["boundary", "layer", "low", "high", "found"])


def _begin(leads: np.ndarray) -> dict[str, np.ndarray]:
    """The first layer that the task leads, and that from which the answer leads to the end.

    Args:
        leads: `[curves, layers]`, which phase leads: 0, 1 or 2.
    """
    task, answer = leads == 1, leads == 2
    to_the_end = np.flip(np.logical_and.accumulate(np.flip(answer, 1), axis=1), 1)
    return {
        name: np.where(where.any(1), where.argmax(1), np.nan)
        for name, where in zip(BOUNDARIES, (task, to_the_end), strict=True)
    }


def _told(row: Any) -> str:
    what = {"task_from": "The task leads from layer", "answer_from": "The answer leads from layer"}
    if np.isnan(row.layer):
        return f"{what[row.boundary]}: none."
    return f"{what[row.boundary]} {row.layer:.0f} (95 % {row.low:.0f} to {row.high:.0f}) on."
