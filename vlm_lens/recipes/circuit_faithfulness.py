"""How few edges do a task: circuits found on some pairs of prompts and run on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from vlm_lens.attribution import Circuit, Edges
from vlm_lens.attribution.attribute import METHODS
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.pairs import Pair, Pairs
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.heads_of_pairs import PairRecipe
from vlm_lens.recipes.parts.scoring import bootstrap
from vlm_lens.recipes.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["CircuitFaithfulness", "CircuitResult"]


@dataclass(frozen=True)
class CircuitFaithfulness(PairRecipe):
    """Takes the strongest edges of half of the pairs, and runs them alone on the other half.

    Scores of edges (edge attribution patching) are averaged over the first half. What stands
    outside a circuit carries the corrupt prompt's values. The control is as many edges drawn at
    random.

    Attributes:
        tasks: As for `PairRecipe`, and so the other fields; of two entities by default, whose
            prompts are of one shape.
        sizes: How many edges are taken.
        method: `"ig"` or `"gradient"`.
    """

    contrast: Literal["task", "entity"] = "entity"
    sizes: tuple[int, ...] = (10, 20, 50, 100, 200)
    method: str = "ig"

    def measure(self, vlm: HookedVLM) -> CircuitResult:
        """Edges of one half, circuits on the other."""
        drawn, notes = self.drawn(vlm)
        rows = []
        for name, pairs in self.progress(list(drawn.items()), "circuits"):
            found, tried = list(pairs)[::2], list(pairs)[1::2]
            edges = mean_edges([pair.edges(vlm, method=self.method) for pair in found])
            generator = np.random.default_rng(self.seed)
            for size in self.sizes:
                circuit = edges.circuit(size)
                real = faithfulness(vlm, circuit, tried)
                chance = faithfulness(vlm, random_edges(edges, len(circuit), generator), tried)
                low, high = bootstrap([np.array(real)])
                rows.append((name, size, len(circuit), np.mean(real), low, high, np.mean(chance)))
        columns = ["task", "edges", "kept", "faithfulness", "low", "high", "random edges"]
        return CircuitResult(pd.DataFrame(rows, columns=columns), {}, {}, notes)

    def drawn(self, vlm: HookedVLM) -> tuple[dict[str, Pairs], tuple[str, ...]]:
        """Pairs of the tasks that have some for each half, and a note on every other task.

        Raises:
            RecipeError: No task has.
        """
        drawn, notes = super().drawn(vlm)
        lone = [
            f"{name}: one pair is solved, so that none is left to test its circuit on: raise "
            "n_pairs=."
            for name, pairs in drawn.items() if len(pairs) < 2
        ]  # fmt: skip
        found = {name: pairs for name, pairs in drawn.items() if len(pairs) > 1}
        if not found:
            raise RecipeError(lone[0])
        return found, (*notes, *lone)

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(2, "n_pairs")
        if not self.sizes or min(self.sizes) < 1:
            raise RecipeError(f"{self.named('sizes')} are numbers of edges, not {self.sizes}.")
        if self.method not in METHODS:
            raise RecipeError(f"{self.named('method')} is 'gradient' or 'ig', not {self.method!r}.")


def mean_edges(edges: Sequence[Edges]) -> Edges:
    """The mean over pairs; the prompts are the first's."""
    values = edges[0].values
    for one in edges[1:]:
        values = values + one.values
    return replace(edges[0], values=values / len(edges))


def random_edges(edges: Edges, n: int, generator: np.random.Generator) -> Circuit:
    """As many edges of the same graph, drawn by chance."""
    known = np.argwhere(~np.isnan(edges.values.to_numpy()))
    names, ends = (edges.values[a].to_numpy().tolist() for a in edges.axes)
    chosen = generator.permutation(len(known))[:n]
    return Circuit(tuple((names[known[i][0]], ends[known[i][1]]) for i in chosen), edges.asked)


def faithfulness(vlm: HookedVLM, circuit: Circuit, pairs: Sequence[Pair]) -> list[float]:
    """That of a circuit on each pair."""
    return [
        circuit.faithfulness(vlm, clean=p.clean, corrupt=p.corrupt, measure=p.measure)
        for p in pairs
    ]


class CircuitResult(Result):
    """Faithfulness against the number of edges.

    `table` has a row for each `task` and number of `edges`: `kept`, those that lie on a way from
    input to logits; `faithfulness` on the pairs that they were not found on, its mean with a 95 %
    interval over pairs, and that of as many `random edges`.
    """

    def plots(self) -> dict[str, go.Figure]:
        """Faithfulness by number of edges, a line a task, and random edges dashed."""
        import plotly.graph_objects as go

        from vlm_lens.figures.style import PALETTE, legend_below, style

        fig, colours = go.Figure(), cycle(PALETTE.values())
        for task, mine in self.table.groupby("task", sort=False):
            line = {"color": next(colours)}
            fig.add_scatter(x=mine["edges"], y=mine["faithfulness"], name=str(task), line=line)
            fig.add_scatter(
                x=mine["edges"], y=mine["random edges"], name=f"{task}, random edges",
                line={**line, "dash": "dot"},
            )  # fmt: skip
        style(fig, title=self.title, x="edges", y="faithfulness", height=420)
        return {"faithfulness": legend_below(fig)}
