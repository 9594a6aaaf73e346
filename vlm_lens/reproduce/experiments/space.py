"""Figure 2: what context embeddings and task vectors cluster by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lens.recipes import TaskSpace
from vlm_lens.reproduce.experiment import Comparison, Experiment, Finding, Results, always
from vlm_lens.terms import CONTEXT, VECTORS

if TYPE_CHECKING:
    from vlm_lens.reproduce.setup import Setup

__all__ = ["EXPERIMENTS"]

RUN = "task-space"


def _compare(setup: Setup, results: Results) -> Comparison:
    table = results[RUN].table
    rows = [
        {
            "method": f"{one['set']}, by {one['by']}",
            "task": "value",
            "quantity": "silhouette" if key == "silhouette" else "p by relabelling",
            "here": one[key],
        }
        for one in table.to_dict("records")
        for key in ("silhouette", "p")
    ]
    by = {(one["set"], one["by"]): one["silhouette"] for one in table.to_dict("records")}
    findings = []
    for points, more, less in (
        (CONTEXT, "modality", "task"),
        (VECTORS, "task", "modality"),
    ):
        if (points, more) in by and (points, less) in by:
            here = by[points, more], by[points, less]
            findings.append(
                Finding(
                    f"{points.capitalize()}{' embeddings' if points == CONTEXT else ''} cluster "
                    f"by {more}, not by {less}.",
                    "shown in a map, not counted",
                    f"silhouette by {more} {here[0]:.2f}, by {less} {here[1]:.2f}",
                    bool(here[0] > here[1]),
                )
            )
    return Comparison.of(rows, findings=findings)


EXPERIMENTS = (
    Experiment(
        id="figure2",
        rows=("E9",),
        title="Figure 2: a map of contexts and of task vectors",
        claim="Embeddings of the examples lie together by modality, task vectors by task.",
        recipes=lambda s: {RUN: s.make(TaskSpace)},
        compare=_compare,
        differs=always(
            "The paper gives maps and no numbers; here silhouettes, counted in the full space, "
            "stand beside them, each with a test by relabelling.",
            "The paper's settings of t-SNE, and whether a context point is one position or a mean, "
            "are not stated; here it is the mean over the input's positions.",
        ),
    ),
)
