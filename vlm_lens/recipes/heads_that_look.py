"""Heads that look at the part of the picture that counts, and what their output is worth.

Localization heads (arXiv 2503.06287): of the heads whose attention falls on the picture more than
the average head's, those whose map over its patches has the lowest entropy. They are chosen on
validation pictures without knowing where the object is, and scored on test pictures where it is
known: does the strongest patch belong to the object? Then their output is scaled at the last
position (arXiv 2506.12609, 2511.17254), beside as many heads drawn by lot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vlm_lens.attention.parts import part_of
from vlm_lens.attention.read import attention
from vlm_lens.attention.summary import entropy
from vlm_lens.interventions.base import compose
from vlm_lens.interventions.scale import Scale
from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import RecipeError, Result
from vlm_lens.recipes.parts.heads import Head
from vlm_lens.recipes.parts.visual import VisualRecipe, right_tokens, tabulated
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.sweep.variants import Variant
from vlm_lens.tasks import Task, localise

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.prompts.prompt import Prompt

__all__ = ["HeadsThatLook", "HeadsThatLookResult"]

CHOSEN, RANDOM, ELSEWHERE = "chosen heads", "random heads", "chosen heads, another picture's object"
_ON_PICTURE = "image 0"


@dataclass(frozen=True)
class HeadsThatLook(VisualRecipe):
    """Finds localization heads, scores their maps, and scales their output.

    Attributes:
        heads: How many heads are chosen.
        pick_rows: On how many validation pictures.
        factors: What the output of the chosen heads is multiplied by, at the last position.
    """

    heads: int = 3
    pick_rows: int = 10
    factors: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)

    def measure(self, vlm: HookedVLM) -> HeadsThatLookResult:
        """Chooses, scores, scales."""
        tasks = self.chosen_tasks()
        every = self._heads_read(vlm, tasks)
        chosen = [(row.layer, row.head) for row in every[every["chosen"]].itertuples()]
        generator = np.random.default_rng(self.seed)
        others = [(row.layer, row.head) for row in every[~every["chosen"]].itertuples()]
        lot = [others[i] for i in generator.permutation(len(others))[: self.heads]]
        looks: list[dict[str, Any]] = []
        scaled: list[dict[str, Any]] = []
        for task in tasks:
            rows = task.rows(self.split)[: self.rows]
            for number, row in enumerate(self.progress(rows, f"{task.name}: heads")):
                prompt = vlm.as_prompt(self.query(task, row))
                about = {"task": task.name, "row": number}
                true = row.patches(prompt.layout)
                far = [r.patches(prompt.layout) for r in rows]
                far = [p for p in far[number:] + far[:number] if not set(p) & set(true)]
                found = attention(vlm, prompt).of_kind(_ON_PICTURE)
                for name, which, where in (
                    (CHOSEN, chosen, true), (RANDOM, lot, true), (ELSEWHERE, chosen, far[:1]),
                ):  # fmt: skip
                    if where:
                        where = where[0] if name == ELSEWHERE else where
                        looks += [{**about, "heads": name, **_hits(found, head, where)}
                                  for head in which]  # fmt: skip
                tokens = right_tokens(vlm, row)
                for name, which in ((CHOSEN, chosen), (RANDOM, lot)):
                    swept = self._scaled(vlm, prompt, which, tokens)
                    scaled += [{**about, "heads": name, **one} for one in swept]
        return _result(every, pd.DataFrame(looks), pd.DataFrame(scaled), tasks)

    def _heads_read(self, vlm: HookedVLM, tasks: tuple[Task, ...]) -> pd.DataFrame:
        """Of every head mean mass on the picture, mean entropy over its patches, and if chosen."""
        mass, spread = [], []
        rows = [(task, row) for task in tasks for row in task.rows("validation")[: self.pick_rows]]
        for task, row in self.progress(rows, "choosing heads"):
            look = attention(vlm, vlm.as_prompt(self.query(task, row)))
            mass.append(look.of_kind(_ON_PICTURE).sum("position").values.to_numpy())
            spread.append(entropy(look, within=_ON_PICTURE).values.to_numpy())
        on_picture, over_patches = (np.mean(one, 0, dtype=float) for one in (mass, spread))
        chosen = localization_heads(on_picture, over_patches, self.heads)
        layers = look.values["layer"].to_numpy().tolist()  # of blocks that attend to positions
        return pd.DataFrame(
            {"layer": layer, "head": head, "mass": on_picture[i, head],
             "entropy": over_patches[i, head], "chosen": (i, head) in chosen}
            for i, layer in enumerate(layers) for head in range(on_picture.shape[1])
        )  # fmt: skip

    def _scaled(
        self, vlm: HookedVLM, prompt: Prompt, heads: list[Head], tokens: list[int]
    ) -> list[dict[str, Any]]:
        """For each factor the probability of the right answers, and the token that is said."""

        def said(logits: torch.Tensor) -> dict[str, Any]:
            probs = logits.float().softmax(-1)
            return {"p": float(probs[tokens].sum()), "says": int(probs.argmax())}

        variants = [
            Variant(
                compose([Scale(f"blocks.{layer}.attn.hook_z", Last(), factor, heads=head)
                         for layer, head in heads]),
                {"factor": factor},
            )
            for factor in self.factors
        ]  # fmt: skip
        found = vlm.sweep(prompt, variants, measure=said, progress=False)
        words = [vlm.tokenizer.decode([r["says"]]).strip().lower() for r in found.records]
        return [
            {"factor": r["factor"], "p": r["p"], "right": r["says"] in tokens, "yes": word == "yes"}
            for r, word in zip(found.records, words, strict=True)
        ]

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(1, "heads", "pick_rows")
        self.some_different("factors")
        least, task, _ = self.fewest_rows("validation")
        if not least:
            raise RecipeError(f"{task} has no validation rows to choose heads on.")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks that there are as many heads, twice, whose output can be scaled."""
        super().validate_for(vlm)
        part = part_of(vlm, "language")
        for layer in part.layers:
            vlm.architecture.points[part.point(layer, "attn.hook_z")]
        total = len(part.layers) * part.n_heads
        if 2 * self.heads > total:
            raise RecipeError(
                f"{self.named('heads')} is {self.heads}; {vlm.name} has {total} heads, and as many "
                "are drawn by lot."
            )


def localization_heads(mass: np.ndarray, spread: np.ndarray, count: int) -> list[Head]:
    """Heads of at least average mass on the picture, the lowest entropy over its patches first.

    Args:
        mass: Mean attention on the picture, `[layer, head]`.
        spread: Mean entropy over its patches.
        count: How many.
    """
    enough = mass >= mass.mean()
    order = np.argsort(np.where(enough, spread, np.inf), axis=None, kind="stable")
    heads = [tuple(int(i) for i in np.unravel_index(n, mass.shape)) for n in order]
    return heads[: min(count, int(enough.sum()))]


def _hits(found: Scores, head: Head, true: list[int]) -> dict[str, Any]:
    layer, number = head
    values = found.sel(layer=layer, head=number).values
    about = {"layer": layer, "head": number}
    if not float(values.sum()):
        return {**about, "hit": 0.0, "mass": 0.0, "chance": len(true) / values.size}
    one = localise(values.to_numpy(), values["position"].to_numpy().tolist(), true)
    return {**about, "hit": float(one.hit), "mass": one.mass, "chance": one.chance}


class HeadsThatLookResult(Result):
    """How well chosen heads point at the object, and what scaling their output does.

    `table` has a row for each `task` (and their `mean`) and `heads`: `hit`, how often a head's
    strongest patch belongs to the object, with `low` and `high`, a 95 % interval by resampling
    pictures; `mass`, the share of its attention on the picture that falls on the object,
    and `chance`, that of a head that looks everywhere alike. `tables["scaled"]` has accuracy and
    the right answers' probability `p` by factor, and for tasks of yes and no the share of `yes`
    among the answers, since a model that always says yes is half right. `scores()` gives mass and
    entropy of every head.
    """

    def scores(self, of: str = "mass") -> Scores:
        """A number for every head, by `layer` and `head`.

        Args:
            of: `"mass"`, attention on the picture, or `"entropy"`, over its patches, in nats.
        """
        table = self.tables["heads"].pivot(index="layer", columns="head", values=of)
        return scores(
            table.to_numpy(),
            {"layer": table.index.tolist(), "head": table.columns.tolist()},
            name={"mass": "attention on the picture"}.get(of, f"{of} over patches (nats)"),
        )

    def plots(self) -> dict[str, go.Figure]:
        """Heads by their mass, hits beside controls, accuracy by factor."""
        from vlm_lens.figures.grouped import grouped_bars
        from vlm_lens.figures.heads import head_map

        heads, found = self.tables["heads"], {}
        found["heads"] = head_map(
            heads, "mass", heads[heads["chosen"]], title="Which heads look at the picture?",
            subtitle="Attention of the last position on it; marked: chosen heads",
        )  # fmt: skip
        for name, table, x, y, what in (
            ("hits", self.table, "task", "hit", "How often the strongest patch is the object's"),
            ("scaled", self.tables["scaled"], "factor", "right", "Accuracy by factor of scaling"),
        ):
            found[name] = grouped_bars(
                table, x=x, y=y, by="heads", title=self.title, controls=(RANDOM, ELSEWHERE),
                subtitle=f"{what}; interval: 95 % over pictures",
            )  # fmt: skip
        return found


def _result(
    every: pd.DataFrame, looks: pd.DataFrame, scaled: pd.DataFrame, tasks: tuple[Task, ...]
) -> HeadsThatLookResult:
    answers = {a.lower() for task in tasks for row in task.test for a in row.answers}
    by_factor = {"p": "mean"} | ({"yes": "mean"} if answers <= {"yes", "no"} else {})
    table = tabulated(looks, ["heads"], "hit", {"mass": "mean", "chance": "mean"})
    scaled_table = tabulated(scaled, ["heads", "factor"], "right", by_factor)
    chosen = every[every["chosen"]].sort_values("entropy", kind="stable")
    listed = ", ".join(f"{row.layer}.{row.head}" for row in chosen.itertuples())
    notes = (
        f"Chosen heads (block.head): {listed}; of {len(every)}.",
        f"'{ELSEWHERE}' and '{RANDOM}' are controls that must fail.",
    )
    return HeadsThatLookResult(
        table, {"scaled": scaled_table, "heads": every, "looks": looks,
                "scaled rows": scaled}, {"heads": listed}, notes,
    )  # fmt: skip
