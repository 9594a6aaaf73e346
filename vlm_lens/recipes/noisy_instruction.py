"""Noisy instructions: does a task vector survive typing errors in the instruction it is read from?

Luo et al. 2025 (arXiv 2410.22330), appendix A.3, Table 9.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from vlm_lens.layout.positions import Last
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.reading.many import read_each
from vlm_lens.recipes.base import RecipeError, seed_list
from vlm_lens.recipes.parts.method_recipe import MethodRecipe, MethodResult, with_methods
from vlm_lens.terms import PATCH, swapped

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["NoisyInstruction", "NoisyResult", "swap_characters"]


@dataclass(frozen=True)
class NoisyInstruction(MethodRecipe):
    """Reads the task from its instruction with neighbouring characters swapped.

    *Patch* is the clean instruction's vector (s = 0 in the paper), *Patch, s swaps* that of the
    instruction with s swaps inside words, each with every seed. *No Context*, *Prompt* (the
    instruction, then the query) and the controls are those of CrossModalPatch with
    `source="instruction"`, which also chooses the block on validation.

    The paper does not say whether case counts in this table; an instruction cannot convey it, and
    `ignore_case=True` leaves it out.

    Attributes:
        swaps: How many swaps, each a method of its own.
        seeds: A number n for seeds 1..n, or the seeds: each draws other swaps.
    """

    source: Literal["instruction"] = "instruction"
    swaps: tuple[int, ...] = field(default=(1, 2), kw_only=True)

    def measure(self, vlm: HookedVLM) -> NoisyResult:
        """The clean instruction by CrossModalPatch, then the noisy ones."""
        paper = self.paper()
        reference = paper.measure(vlm)
        texts = self.instructions()
        vectors = read_each(vlm, list(texts["instruction"]), at=Last(), batch_size=self.batch_size)
        patches = [paper.patch(reference.layer, v[reference.layer]) for v in vectors]
        runs = []
        for task in self.chosen_tasks():
            mine = texts[texts["task"] == task.name]
            keys = [(swapped(s), int(seed)) for s, seed in zip(mine.swaps, mine.seed, strict=True)]
            methods = {key: patches[i] for key, i in zip(keys, mine.index, strict=True)}
            runs += self.runs(vlm, task, methods, what="noisy instructions")
        return with_methods(reference, runs, self, kind=NoisyResult, tables={"instructions": texts})

    def instructions(self) -> pd.DataFrame:
        """Every noisy instruction: task, swaps, seed, instruction."""
        rows = [
            (task.name, swaps, seed, swap_characters(task.instruction, swaps, seed=seed))
            for task in self.chosen_tasks()
            for swaps in self.swaps
            for seed in self.used_seeds()
        ]
        return pd.DataFrame(rows, columns=["task", "swaps", "seed", "instruction"])

    def used_seeds(self) -> tuple[int, ...]:
        """The seeds of the swaps."""
        return seed_list(self.seeds)

    def validate(self) -> None:
        """Checks the fields, and that the instructions have room for the swaps."""
        if not self.swaps or min(self.swaps) < 1 or len(set(self.swaps)) < len(self.swaps):
            raise RecipeError(
                f"NoisyInstruction.swaps is {self.swaps!r}; give different numbers from 1 on (no "
                f"swap is {PATCH!r})."
            )
        self.instructions()


def swap_characters(text: str, swaps: int, *, seed: int) -> str:
    """A text with neighbouring characters inside words swapped, as by a fast typist.

    After `char_swap` of the package `typo`, which the paper used: a place between two word
    characters is drawn and they change places, while upper and lower case stay where they were.
    Unlike there, places are drawn without replacement, and where the two characters are the same
    nothing is drawn, so that every swap changes the text.

    Args:
        text: The text.
        swaps: How many swaps.
        seed: The seed of the draw.

    Raises:
        RecipeError: The text has too few such places.
    """
    generator, used = np.random.RandomState(seed), set()
    for _ in range(swaps):
        places = [
            i for i, (a, b) in enumerate(zip(text, text[1:], strict=False))
            if a.isalnum() and b.isalnum() and a.lower() != b.lower() and i not in used
        ]  # fmt: skip
        if not places:
            raise RecipeError(f"{text!r} has no place left to swap; ask for fewer than {swaps}.")
        i = places[generator.randint(len(places))]
        used.add(i)
        a, b = text[i], text[i + 1]
        first = b.upper() if a.isupper() else b.lower()
        second = a.upper() if b.isupper() else a.lower()
        text = text[:i] + first + second + text[i + 2 :]
    return text


class NoisyResult(MethodResult):
    """Accuracies by number of swaps; `tables["instructions"]` holds every noisy instruction."""

    def by_swaps(self) -> pd.DataFrame:
        """The rows of the table that count swaps, with their number: `swaps`, 0 for none."""
        numbers = sorted(set(self.tables["instructions"]["swaps"]))
        names = {swapped(n): n for n in (0, *numbers)}
        rows = self.table[self.table["method"].isin(names)].copy()
        return rows.assign(swaps=rows["method"].map(names)).sort_values("swaps", kind="stable")

    def plots(self) -> dict[str, go.Figure]:
        """Accuracy against swaps, and the methods."""
        from vlm_lens.figures.noise import noise_lines

        return {"noise": noise_lines(self.by_swaps(), layer=self.layer), **super().plots()}
