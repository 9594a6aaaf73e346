"""What task vectors say: the tokens that they decode to, layer by layer.

Luo et al. 2025 (arXiv 2410.22330), Tables 6 and 13 and Figure 13.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from torch import Tensor

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.vector_sources import (
    Source,
    open_prompts,
    relative_layer,
    residual_stream,
)
from vlm_lens.recipes.result import Result
from vlm_lens.terms import Layer, layer_name, layers_of
from vlm_lens.tokens import string_token

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["TopDecodings", "TopDecodingsResult"]


@dataclass(frozen=True)
class TopDecodings(TaskRecipe):
    """Decodes the last delimiter of many prompts with the logit lens, at each layer.

    Three things are kept. The most likely tokens of the mean vector over runs: what the patched
    vector says. Those of the mean distribution: what the runs say on average. And how often each
    token is the most likely of a single run. The paper does not say whether its tables hold the
    first or the second.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        sources: Where tasks are read from: `"text"`, `"image"`, `"instruction"`.
        layer: The layer of the printed table: a 0-based block, by its output, or `"embed"`; by
            default as deep as the paper's block 17 of 32.
        k: How many tokens are kept.
        runs: How many prompts; no more than the split has rows. An instruction is one.
        n_examples: How many examples a prompt has, the last one open.
        seed: The seed of the draw.
        split: Whose rows are drawn.
        batch_size: How many prompts run together.
    """

    sources: tuple[Source, ...] = ("text", "image")
    layer: int | Literal["embed"] | None = None
    k: int = 5
    runs: int = 100
    n_examples: int = 5
    seed: int = 1
    split: Literal["validation", "test"] = "test"
    batch_size: int = 16

    def measure(self, vlm: HookedVLM) -> TopDecodingsResult:
        """Decodings of every task and source."""
        tables: dict[str, list[pd.DataFrame]] = {"vector": [], "distribution": [], "top_1": []}
        for task in self.chosen_tasks():
            for source in self.sources:
                prompts = open_prompts(
                    task, source, seed=self.seed, n=self.n_examples, split=self.split
                )[: self.runs]
                hidden = residual_stream(
                    vlm, prompts, batch_size=self.batch_size,
                    progress=lambda b, what=f"{task.name}, {source}": self.progress(b, what),
                )  # fmt: skip
                for name, table in _decoded(vlm, hidden, self.k).items():
                    table.insert(0, "source", source)
                    table.insert(0, "task", task.name)
                    tables[name].append(table)
        layer = self.layer
        if layer is None:
            layer = relative_layer(17, 32, vlm.cfg.n_layers)
        joined = {name: pd.concat(each, ignore_index=True) for name, each in tables.items()}
        notes = (
            f"The {self.k} most likely tokens of the mean vector, at {layer_name(layer)} of "
            f"0..{vlm.cfg.n_layers - 1}, its output.",
        )
        return TopDecodingsResult(joined.pop("vector"), joined, {"layer": layer}, notes)

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.some_different("sources")
        self.at_least(1, "k", "runs", "n_examples", "batch_size")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the layer, and that a model that is to see pictures can."""
        self.a_block(vlm)
        self.must_see(vlm, "sources")


class TopDecodingsResult(Result):
    """Decodings by task, source and layer (`"embed"`, then the output of each 0-based block).

    `table` has the tokens of the mean vector: `rank` from 1, `token`, `prob`. Likewise
    `tables["distribution"]` those of the mean distribution. `tables["top_1"]` says of how many
    runs a token is the most likely: `token`, `count`, `share`.
    """

    def top(self, task: str, source: str = "text", *, layer: Layer | None = None) -> list[str]:
        """The most likely tokens of a mean vector, at the printed layer or another.

        Raises:
            RecipeError: They were not decoded.
        """
        layer = self.values["layer"] if layer is None else layer
        found = self.table.query("task == @task and source == @source and layer == @layer")
        if found.empty:
            where = layer_name(layer)
            raise RecipeError(f"{task!r} from {source!r} at {where} was not decoded.")
        return found["token"].tolist()

    def summary(self) -> pd.DataFrame:
        """Tasks by sources, as the paper prints them."""
        rows = []
        for task in dict.fromkeys(self.table["task"]):
            sources = dict.fromkeys(self.table["source"])
            tops = {s: [t.strip() or repr(t) for t in self.top(task, s)] for s in sources}
            rows.append({"task": task, **{s: ", ".join(top) for s, top in tops.items()}})
        return pd.DataFrame(rows)

    def plots(self) -> dict[str, go.Figure]:
        """The first token by layer: of the mean vectors, and the commonest over runs."""
        from vlm_lens.figures.decodings import commonest_tokens, vector_tokens

        runs = commonest_tokens(self.tables["top_1"])
        return {"decodings": vector_tokens(self.table), "runs": runs}


def _decoded(vlm: HookedVLM, hidden: Tensor, k: int) -> dict[str, pd.DataFrame]:
    """The three tables of one task and source, from `[runs, layers, d_model]`."""
    vector, spread, counts = [], [], []
    for i, layer in enumerate(layers_of(hidden.shape[1] - 1)):
        mean = hidden[:, i].double().mean(0, keepdim=True).to(hidden.dtype)
        probs = _probs(vlm, hidden[:, i])
        for rows, one in ((vector, _probs(vlm, mean)[0]), (spread, probs.mean(0))):
            best = one.topk(min(k, len(one)))
            for rank, (token, prob) in enumerate(zip(best.indices, best.values, strict=True), 1):
                rows.append((layer, rank, string_token(vlm.tokenizer, int(token)), float(prob)))
        for token, count in Counter(probs.argmax(-1).tolist()).most_common():
            counts.append((layer, string_token(vlm.tokenizer, token), count, count / len(hidden)))
    ranked = ["layer", "rank", "token", "prob"]
    return {
        "vector": pd.DataFrame(vector, columns=ranked),
        "distribution": pd.DataFrame(spread, columns=ranked),
        "top_1": pd.DataFrame(counts, columns=["layer", "token", "count", "share"]),
    }


@torch.no_grad()
def _probs(vlm: HookedVLM, hidden: Tensor) -> Tensor:
    return vlm.unembed(vlm.ln_final(hidden.to(vlm.device))).float().softmax(-1).cpu()
