"""Edge attribution patching: how much of a difference goes from each part to each other part.

```
score(u -> v) ~ (u_corrupt - u_clean) . d(measure)/d(input of v)       summed over positions
```

as the share of the difference that is lost where the edge alone is given the corrupt prompt's value
(Syed et al. 2023, arXiv 2310.10348; `method="ig"`: Hanna et al. 2024, arXiv 2403.17806). Signs are
kept. `edges.circuit(n)` takes the strongest, and `circuit.faithfulness(vlm)` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vlm_lens.attribution.attribute import METHODS, STEPS
from vlm_lens.attribution.between import between
from vlm_lens.attribution.circuit import Circuit, Counterpart
from vlm_lens.attribution.graph import Graph
from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.layout.position_map import PositionMap, position_map
from vlm_lens.measures.base import Measure
from vlm_lens.patching.parts import check_apart
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores.scores import Scores, scores

_ROUNDING = 1e-7  # of the largest score: below it an edge carries nothing


@dataclass(frozen=True, eq=False, repr=False)
class Edges(Scores):
    """Scores by `component` (what adds to the stream) and `receiver` (what reads it).

    Pairs that are no edge, because the one comes after the other, hold NaN.

    Attributes:
        asked: What was attributed; `None` after it was read from a file.
    """

    asked: Counterpart | None = field(default=None, repr=False)

    def circuit(self, n: int) -> Circuit:
        """The `n` edges with the largest scores by magnitude.

        Those from which no way leads on to the logits, or to which none leads from the input, are
        left out, so that it may have fewer.

        Raises:
            AttributionError: `n` below 1, or the scores are no longer by component and receiver.
        """
        if self.axes != ("component", "receiver"):
            raise AttributionError(f"A circuit is made of edges; these are {list(self.axes)}.")
        number = as_integer(n, "n", AttributionError)
        if number < 1:
            raise AttributionError(f"A circuit has at least 1 edge, not {n}.")
        flat = np.nan_to_num(np.abs(self.values.to_numpy().reshape(-1)))
        order = np.argsort(-flat, kind="stable")[:number]
        names, ends = (self.values[a].to_numpy().tolist() for a in self.axes)
        real = flat > _ROUNDING * flat.max()
        chosen = [(names[i // len(ends)], ends[i % len(ends)]) for i in order if real[i]]
        return Circuit(tuple(chosen), self.asked).connected()

    def curve(
        self,
        vlm: HookedModel,
        sizes: Sequence[int] = (1, 2, 5, 10, 20, 50, 100, 200),
        *,
        outside: Sequence[Prompt] | str = "counterfactual",
    ) -> Scores:
        """The faithfulness of circuits of growing size, by `edges`: how many are enough.

        Args:
            vlm: The model.
            sizes: How many of the strongest edges.
            outside: As for `Circuit.faithfulness`.
        """
        found = [
            one.faithfulness(vlm, outside=outside) if len(one) else 0.0
            for one in map(self.circuit, sizes)
        ]
        about = {**self.about, "edges": "the strongest"}
        return scores(np.array(found), {"edges": list(sizes)}, name="faithfulness", about=about)


def attribute_edges(
    vlm: HookedModel,
    clean: Prompt,
    corrupt: Prompt,
    *,
    measure: Measure,
    method: str = "gradient",
    steps: int = STEPS,
    positions: PositionMap | None = None,
) -> Edges:
    """The share of a difference that goes along each edge, estimated for all at once.

    Args:
        vlm: The model.
        clean: The clean prompt, of one row.
        corrupt: The corrupt one, of the same shape.
        measure: A measure with a gradient.
        method: `"gradient"` at the clean run, or `"ig"`, its mean on the way to the corrupt one.
        steps: Of `"ig"`.
        positions: Which position stands for which; found by default.

    Raises:
        AttributionError: The model's parts do not each add to the stream, or the prompts are of
            two shapes.
        VLMLensError: Something else does not fit.
    """
    if method not in METHODS:
        raise AttributionError(f"method is 'gradient' or 'ig', not {method!r}.")
    positions = positions or position_map(clean.layout, corrupt.layout)
    if not positions.is_whole or len(clean.layout) != len(corrupt.layout):
        raise AttributionError(
            "Edges need a counterpart of every position: take prompts of one shape, not of "
            f"{len(clean.layout)} and {len(corrupt.layout)} positions."
        )
    graph = Graph(vlm)
    n_steps = as_integer(steps, "steps", AttributionError) if method == "ig" else None
    found = between(
        vlm, clean, corrupt, graph.names, measure, positions, steps=n_steps,
        at_each=graph.input_gradients,
    )  # fmt: skip
    check_apart(found.value, found.other)
    names, stages, here = graph.senders(found.here)
    _, _, there = graph.senders(found.there)
    if len(here) != len(there):
        raise AttributionError("The two runs add other parts to the stream.")
    gradients = torch.stack(
        [found.gradients[r.name].to(here.device).float() for r in graph.receivers]
    )
    effect = torch.einsum("sbpd,rbpd->sr", there - here, gradients).double().cpu().numpy()
    share = -effect / (found.value - found.other)
    share = np.where(graph.allowed(stages), share, np.nan)
    about: dict[str, Any] = {
        "method": f"edge {METHODS[method]} (noise)",
        "model": vlm.name,
        "measure": repr(measure),
        "clean": found.value,
        "corrupt": found.other,
    }
    if n_steps is not None:
        about["steps"] = n_steps
        if found.gap is not None:
            about["the line is off by"] = found.told()
    axes = {"component": names, "receiver": [r.name for r in graph.receivers]}
    made = scores(share, axes, name="share along the edge", layout=clean.layout, about=about)
    return Edges(**vars(made), asked=Counterpart(clean, corrupt, measure))
