"""Transfer between models: a base language model's task vectors written into its VLM.

Luo et al. 2025 (arXiv 2410.22330), section 4.2, Tables 3 and 11 and Figure 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from torch.nn.functional import cosine_similarity

from vlm_lens.model.checkpoints import base_of
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.controls import Control, chosen_controls, interventions
from vlm_lens.recipes.parts.method_recipe import MethodRecipe, MethodResult, with_methods
from vlm_lens.recipes.parts.vector_sources import TaskVectors, is_loaded, writable_into
from vlm_lens.tasks import Task
from vlm_lens.terms import PATCH_BASE, PATCH_UNRELATED

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["InterModelTransfer", "InterModelResult"]

_CONTROLS = ("wrong-same", "wrong-other", "shuffled")  # of the base model's vectors
_FIELDS = {"base": "source_model", "unrelated": "unrelated_model"}


@dataclass(frozen=True)
class InterModelTransfer(MethodRecipe):
    """Compares a language model's task vectors with those of the VLM made from it, and uses them.

    The same prompts, of text alone, are read on both models. *Cosine*: each vector of the one with
    each of the other, of the same task and of different tasks (the paper's baseline of .58).
    *Patch, base LLM*: the language model's vector of the chosen block written at the same block of
    the VLM, beside the VLM's own vector (*Patch*), *No Context* and *Prompt*.

    Controls, beside those of CrossModalPatch: the base model's vectors of other tasks and of
    shuffled answers; and the vector of a language model that is not the VLM's base, brought to the
    length of the VLM's own, which says how much of the transfer any such model would give.

    The block is chosen on validation with the VLM's own vectors. The paper pools its baseline of
    .58 over two pairs of models; here there is one pair a run.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        source: Where the task is read from: examples as text, or the instruction.
        source_model: The base language model: a zoo name, folder, short name, Hub id or a loaded
            HookedVLM; that of the zoo or of `vlm_lens.model.checkpoints` if None.
        unrelated_model: A language model of the same width that the VLM was not made from.
    """

    source: Literal["text", "instruction"] = "text"
    source_model: Any = field(default=None, kw_only=True)
    unrelated_model: Any = field(default=None, kw_only=True)

    def measure(self, vlm: HookedVLM) -> InterModelResult:
        """Vectors on every model, their cosines, the test."""
        named = {"base": self.source_model or base_of(vlm.name), "unrelated": self.unrelated_model}
        llms = {
            kind: writable_into(vlm, model, field=f"InterModelTransfer.{_FIELDS[kind]}")
            for kind, model in named.items()
            if model is not None
        }
        names = {kind: llm.name for kind, llm in llms.items()}
        paper = self.paper()
        reference = paper.measure(vlm)
        own, theirs = paper.reader(vlm), {kind: paper.reader(llm) for kind, llm in llms.items()}
        runs, pairs = [], list(product(self.chosen_tasks(), self.used_seeds()))
        for task in self.chosen_tasks():
            methods = {
                (method, seed): made
                for seed in self.used_seeds()
                for method, made in self.methods(task, seed, reference.layer, own, theirs).items()
            }
            runs += self.runs(vlm, task, methods)
        tables = {"cosine": pd.concat([cosines(pairs, own, one, k) for k, one in theirs.items()])}
        note = (
            f"{PATCH_BASE}: vectors of {names['base']} at the same block, with controls of its own."
        )
        if "unrelated" in names:
            note += (
                f" {PATCH_UNRELATED}: {names['unrelated']}, at the length of the VLM's own vector."
            )
        return with_methods(
            reference, runs, self, kind=InterModelResult, tables=tables, notes=[note],
            values={"models": {"vlm": vlm.name, **names}},
        )  # fmt: skip

    def methods(
        self, task: Task, seed: int, layer: int, own: TaskVectors, theirs: Mapping[str, TaskVectors]
    ) -> dict[str, Any]:
        """What is written into the VLM, by method."""
        paper = self.paper()
        mine = paper.setting(task, seed, layer, own)
        base = paper.setting(task, seed, layer, theirs["base"], allow_transfer=True)
        by_method = {PATCH_BASE: base.write(theirs["base"](task, seed))}
        made = interventions(self.base_controls(), base)
        by_method |= {f"{name}, base LLM": one for name, one in made.items()}
        if "unrelated" in theirs:
            other = theirs["unrelated"](task, seed).layer(layer)
            by_method[PATCH_UNRELATED] = base.write(mine.as_long(other))
        return by_method

    def base_controls(self) -> tuple[Control, ...]:
        """The controls of the base model's vectors; an instruction has no answers to shuffle."""
        if not self.controls:
            return ()
        keys = [k for k in _CONTROLS if not (k == "shuffled" and self.source == "instruction")]
        return chosen_controls(keys, field="InterModelTransfer.controls")

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.base_controls()
        for name in ("source_model", "unrelated_model"):
            model = getattr(self, name)
            if not (model is None or isinstance(model, str) or is_loaded(model)):
                raise RecipeError(
                    f"InterModelTransfer.{name} is a {type(model).__name__}; give a name, a "
                    "folder, a Hub id or a HookedVLM."
                )

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that a base model is known."""
        if self.source_model is None and base_of(vlm.name) is None:
            raise RecipeError(
                f"Which language model {vlm.name} was made from is not known: set "
                "InterModelTransfer.source_model."
            )

    def used_seeds(self) -> tuple[int, ...]:
        """The seeds; one for an instruction, from which nothing is drawn."""
        return self.paper().used_seeds()

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON data, loaded models by their names."""
        named = {n: getattr(self, n) for n in ("source_model", "unrelated_model")}
        names = {n: m.name if is_loaded(m) else m for n, m in named.items()}
        return {**super().to_dict(), **names}


def cosines(
    pairs: Sequence[tuple[Task, int]], own: TaskVectors, theirs: TaskVectors, kind: str
) -> pd.DataFrame:
    """Cosine of every vector of one model with every one of the other, of the same seed.

    Args:
        pairs: Tasks and seeds.
        own: The VLM's vectors.
        theirs: The language model's.
        kind: Which language model.

    Returns:
        A row for each pair of tasks, seed and block: `cosine`, and `centered`, the cosine of what
        is left when each model's mean over tasks is taken away (missing below three tasks).
    """
    tasks = list(dict.fromkeys(task for task, _ in pairs))
    rows = []
    for seed in dict.fromkeys(seed for _, seed in pairs):
        layers = len(own(tasks[0], seed).values)
        a, b = (
            {task: v(task, seed).values[:layers].double() for task in tasks} for v in (theirs, own)
        )
        mean_a, mean_b = (sum(x.values()) / len(tasks) for x in (a, b))
        for one, other in product(tasks, tasks):
            plain = cosine_similarity(a[one], b[other], dim=-1)
            centered = cosine_similarity(a[one] - mean_a, b[other] - mean_b, dim=-1)
            for layer in range(layers):
                left = float(centered[layer]) if len(tasks) > 2 else np.nan
                rows.append((kind, one.name, other.name, seed, layer, float(plain[layer]), left))
    columns = ["model", "llm_task", "vlm_task", "seed", "layer", "cosine", "centered"]
    return pd.DataFrame(rows, columns=columns)


class InterModelResult(MethodResult):
    """Accuracies of the VLM's own and of other models' vectors, and the cosines.

    `tables["cosine"]` has a row for each model (`base`, `unrelated`), pair of tasks, seed and
    0-based block.
    """

    def cosine(self, model: str = "base", *, layer: int | None = None) -> dict[str, float]:
        """Mean cosine of vectors of the same task (`matched`) and of different tasks.

        Args:
            model: `"base"` or `"unrelated"`.
            layer: The block; the patched one if None.
        """
        table = self.cosine_table(model, self.layer if layer is None else layer)
        same = table["llm_task"] == table["vlm_task"]
        means = {"matched": table[same], "mismatched": table[~same]}
        return {name: float(rows["cosine"].mean()) for name, rows in means.items()}

    def cosine_table(self, model: str = "base", layer: int | None = None) -> pd.DataFrame:
        """The cosines of one model, at one block if given.

        Raises:
            RecipeError: No such model.
        """
        table = self.tables["cosine"]
        if model not in set(table["model"]):
            raise RecipeError(f"There are no cosines of {model!r}: {sorted(set(table['model']))}.")
        table = table[table["model"] == model]
        return table if layer is None else table[table["layer"] == layer]

    def plots(self) -> dict[str, go.Figure]:
        """Methods, the cosine matrix at the patched block, and cosines by block."""
        from vlm_lens.figures.cosine import cosine_layers, cosine_matrix

        names = self.values["models"]
        at_block = self.cosine_table("base", self.layer)
        matrix = cosine_matrix(at_block, llm=names["base"], vlm=names["vlm"], layer=self.layer)
        by_block = cosine_layers(self.tables["cosine"], names=names, layer=self.layer)
        return {**super().plots(), "cosine_matrix": matrix, "cosine_layers": by_block}
