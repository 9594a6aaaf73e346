"""What prompting costs, and what patching costs: time and memory of one forward pass.

Luo et al. 2025 (arXiv 2410.22330), appendix A.2, Table 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vlm_lens.interventions import ActivationPatch
from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.points.placement import devices_of
from vlm_lens.reading.many import read_each
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.recipes.parts.cost_meter import Meter
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.terms import PATCHING, PROMPTING, QUERY_ONLY

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["CostResult", "PromptCost"]


@dataclass(frozen=True)
class PromptCost(Recipe):
    """Measures one forward pass with examples in the prompt, and with a vector instead.

    Prompts are made, and pictures processed, before the clock starts; what is measured is one
    forward pass over one prompt, with logits at every position, as in the paper. *Patching* is the
    query with a vector written at its last position. To read a vector costs about one pass of
    *Prompting*, once. The ways are measured in turn, so that a busy machine slows all of them.

    On CUDA memory is what PyTorch has allocated, on a CPU what the process has in RAM: that holds
    Python and its libraries too, and a model of the zoo is small beside them.

    Attributes:
        task: The name of a shipped task, or a Task.
        n_examples: Numbers of examples; the paper has 30.
        source: Whether examples are given by name or by picture.
        query: Whether the query is given by name or by picture.
        runs: How many passes are measured of each; the paper has 100.
        warmup: How many are made before.
        layer: The 0-based block that is patched; the middle one if None.
        seed: The seed of the examples, others for each run.
        split: Whose rows examples are drawn from.
    """

    task: str | Task = "country-capital"
    n_examples: tuple[int, ...] = (5, 10, 20, 30)
    source: Literal["text", "image"] = "text"
    query: Literal["image", "text"] = "image"
    runs: int = 20
    warmup: int = 2
    layer: int | None = None
    seed: int = 1
    split: Literal["validation", "test"] = "test"

    def measure(self, vlm: HookedVLM) -> CostResult:
        """Every way once a run, in turn."""
        rows = []
        for run in self.progress(range(-self.warmup, self.runs), "forward passes"):
            for (way, n), (prompt, edit) in self.ways(vlm, max(run, 0)).items():
                with Meter(*devices_of(vlm.hf_model)) as meter:
                    vlm.run(prompt, interventions=edit)
                found = (way, n, run, prompt.length, meter.seconds, meter.before, meter.peak)
                rows += [found] if run >= 0 else []
        columns = ["method", "n_examples", "run", "tokens", "seconds", "before", "peak"]
        passes = pd.DataFrame(rows, columns=columns)
        return CostResult(
            summed(passes), {"passes": passes}, {"device": str(vlm.device)}, notes(vlm, self)
        )

    def ways(self, vlm: HookedVLM, run: int) -> dict[tuple[str, int], tuple[Any, Any]]:
        """(Way, examples) -> prompt and intervention."""
        task, seed = self.chosen_task(), self.seed + run
        rows = task.rows(self.split)
        asked = rows[run % len(rows)]
        shown = {
            n: task.examples(n, self.source, seed=seed, split=self.split, query=asked,
                             query_modality=self.query)
            for n in self.n_examples
        }  # fmt: skip
        query = vlm.prompt(task.query(asked, self.query))
        layer = vlm.cfg.n_layers // 2 if self.layer is None else self.layer
        point = f"blocks.{layer}.hook_resid_post"
        vector = read_each(vlm, [task.instruction], at=Last(), points=point)[0, 0]
        patch = ActivationPatch(point, at=Last(), value=vector)
        prompting = {(PROMPTING, n): (vlm.prompt(raw), ()) for n, raw in shown.items()}
        return {**prompting, (PATCHING, 0): (query, patch), (QUERY_ONLY, 0): (query, ())}

    def chosen_task(self) -> Task:
        """The task that the field `task` means."""
        return Task.load(self.task) if isinstance(self.task, str) else self.task

    def validate(self) -> None:
        """Checks the fields."""
        available = len(self.chosen_task().rows(self.split)) - 1
        if (
            not self.n_examples
            or not 1 <= min(self.n_examples) <= max(self.n_examples) <= available
        ):
            raise RecipeError(
                f"PromptCost.n_examples is {self.n_examples!r}; the {self.split} rows of "
                f"{self.chosen_task().name} allow 1 to {available}."
            )
        self.at_least(1, "runs")
        self.at_least(0, "warmup", "layer")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the layer, and that a model that is to see pictures can."""
        self.a_block(vlm)
        self.must_see(vlm, "source", "query")


def summed(passes: pd.DataFrame) -> pd.DataFrame:
    """Medians and quartiles over runs, and ratios to patching.

    Args:
        passes: A row for each forward pass.
    """
    groups = passes.groupby(["method", "n_examples"], sort=False)
    table = groups[["tokens", "seconds", "peak"]].median()
    table["seconds_low"] = groups["seconds"].quantile(0.25)
    table["seconds_high"] = groups["seconds"].quantile(0.75)
    table["extra"] = (passes["peak"] - passes["before"]).groupby(
        [passes["method"], passes["n_examples"]], sort=False).median()  # fmt: skip
    patching = table.loc[(PATCHING, 0)]
    table["time_ratio"] = table["seconds"] / patching["seconds"]
    table["memory_ratio"] = table["peak"] / patching["peak"]
    return table.reset_index()


def notes(vlm: HookedVLM, recipe: PromptCost) -> tuple[str, ...]:
    """What must be known to read the table."""
    kind = "allocated on the GPU" if vlm.device.type == "cuda" else "of the process in RAM"
    return (
        f"Medians of {recipe.runs} forward passes on {vlm.device}, {recipe.source} examples, "
        f"{recipe.query} query. peak: bytes {kind} at the most; extra: more than before the pass. "
        "Ratios are to patching.",
    )


class CostResult(Result):
    """Time and memory by way and number of examples.

    `table` has medians over runs: `tokens`, `seconds` (with quartiles), `peak` and `extra` bytes,
    `time_ratio` and `memory_ratio` to patching. `tables["passes"]` has every pass.
    """

    def summary(self) -> pd.DataFrame:
        """Milliseconds and megabytes."""
        table = self.table
        return pd.DataFrame(
            {
                "method": table["method"],
                "n_examples": table["n_examples"],
                "tokens": table["tokens"].astype(int),
                "ms": (table["seconds"] * 1e3).round(2),
                "peak MB": (table["peak"] / 1e6).round(1),
                "extra MB": (table["extra"] / 1e6).round(2),
                "time x": table["time_ratio"].round(2),
                "memory x": table["memory_ratio"].round(3),
            }
        )

    def plots(self) -> dict[str, go.Figure]:
        """Time and memory against the number of examples."""
        from vlm_lens.figures.cost import cost_lines

        return {"cost": cost_lines(self.table, device=self.values["device"])}
