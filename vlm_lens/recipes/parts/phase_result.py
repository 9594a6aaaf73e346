"""What phase curves give: means, bands and ranks by layer, and where phases begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlm_lens.recipes.result import Result
from vlm_lens.terms import ANSWER, INPUT, PHASES, TASK, Layer, examples_of, layer_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.figures.phases import Curves

__all__ = ["PhaseResult", "phases"]

BOUNDARIES = ("task_from", "answer_from")
_RESAMPLES = 2000


class PhaseResult(Result):
    """Phase curves.

    `table` has one row a layer: for `input`, `task` and `answer` the mean over runs of the
    renormalised probability, its 25th and 75th percentile (`_low`, `_high`) and the median rank in
    the whole vocabulary (`_rank`, 0 for the most likely), and `phase`, the largest mean. A layer is
    `"embed"` or a 0-based block, by its output. `tables["runs"]` holds every run.
    """

    @property
    def boundaries(self) -> pd.DataFrame:
        """Where phases begin, with intervals by resampling runs.

        `boundary` is `task_from` or `answer_from`; `layer` its layer (missing where there is none),
        `low` and `high` the 95 % bootstrap interval, among the share `found` of resamples that
        have one.
        """
        return self.tables["boundaries"]

    @property
    def phases(self) -> str:
        """The dominant phase of each layer in one letter, `embed` first: `"IIITTTAA"`."""
        return "".join(phase[0].upper() for phase in self.table["phase"])

    @property
    def task_from(self) -> Layer | None:
        """The first layer at which the task's word dominates; None if it never does."""
        return self.values["task_from"]

    @property
    def answer_from(self) -> Layer | None:
        """The layer from which on the answer dominates to the end; None if not at the end."""
        return self.values["answer_from"]

    def plots(self) -> dict[str, go.Figure]:
        """The three curves with their bands, and the ranks in the whole vocabulary."""
        from vlm_lens.figures.phases import phase_curves, rank_curves

        return {
            "phases": phase_curves(self.curves, self.boundaries), "ranks": rank_curves(self.curves),
        }  # fmt: skip

    @property
    def curves(self) -> Curves:
        """What figures of phases draw."""
        from vlm_lens.figures.phases import Curves

        values = self.values
        counted = "answers" if values["modality"] == "instruction" else "prompts"
        tokens = {
            INPUT: f"input {values['input_token']!r}", TASK: f"task {values['task_token']!r}",
            ANSWER: ANSWER,
        }  # fmt: skip
        examples = examples_of(values["modality"])
        return Curves(self.table, values["task"], examples, tokens, f"{values['runs']} {counted}")

    def summary(self) -> pd.DataFrame:
        """Layer by layer: the three means, the ranks, the phase."""
        columns = ["layer", *PHASES, *(f"{p}_rank" for p in PHASES), "phase"]
        return self.table[columns].round(3)


def phases(runs: pd.DataFrame, values: dict[str, Any], *, skipped: int) -> PhaseResult:
    """Means, percentiles and phases by layer, from every run.

    Args:
        runs: A row for each run and layer.
        values: What the tokens are.
        skipped: How many runs were left out because two of their tokens are one.
    """
    by_layer = runs.groupby("layer", sort=False)  # runs go from the first layer to the last
    table = pd.DataFrame({"layer": list(by_layer.groups)})
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
        row.boundary: None if pd.isna(row.layer) else row.layer for row in edges.itertuples()
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
        "A layer is a block (0-based), by its output; embed is the stream before the first block.",
        f"{said} Input token {values['input_token']!r}, "
        f"{_taken(values.get('task_tokens') or [values['task_token']])}, "
        "answer token: the first of each run's own answer.",
        *(_told(row) for row in edges.itertuples()),
    )
    if skipped:
        notes += (f"{skipped} runs are left out: two of their three tokens are the same.",)
    return PhaseResult(table, {"runs": runs, "boundaries": edges}, values, notes)


def _taken(tokens: list[str]) -> str:
    """The tokens of the task's word, in words."""
    if len(tokens) == 1:
        return f"task token {tokens[0]!r}"
    return f"task tokens {', '.join(map(repr, tokens))} (summed)"


def _boundaries(runs: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Where the task and the answer begin to lead, and how sure that is over runs."""
    layers = list(dict.fromkeys(runs["layer"].tolist()))
    curves = np.stack([run[list(PHASES)].to_numpy().ravel() for _, run in runs.groupby("run")])
    share = np.full(len(curves), 1 / len(curves))
    drawn = np.random.default_rng(seed).multinomial(len(curves), share, _RESAMPLES) / len(curves)
    rows = []
    found, again = (
        _begin((weights @ curves).reshape(-1, len(layers), len(PHASES)).argmax(-1))
        for weights in (share[None], drawn)
    )
    for name in BOUNDARIES:
        there = again[name][~np.isnan(again[name])]
        low, high = (
            np.quantile(there, [0.025, 0.975], method="inverted_cdf")
            if len(there)
            else (np.nan,) * 2
        )
        at = [None if np.isnan(i) else layers[int(i)] for i in (found[name][0], low, high)]
        rows.append((name, *at, len(there) / _RESAMPLES))
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
    what = {"task_from": "task", "answer_from": "answer"}[row.boundary]
    if pd.isna(row.layer):
        return f"The {what} leads from no layer on."
    low, high = layer_name(row.low), layer_name(row.high)
    return f"The {what} leads from {layer_name(row.layer)} (95 % {low} to {high}) on."
