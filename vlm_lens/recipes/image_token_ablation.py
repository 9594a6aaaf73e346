"""Image-token ablation: is what a picture's object is called read from the object's own tokens?

Neo et al. 2024 (arXiv 2410.07149). At the language model's input, `hook_merged`, the tokens of the
object (and of 0, 1, 2 rings of patches around it) are replaced by the mean image token of a data
set. Beside it stand as many random patches, the patches of largest norm (which act as registers),
and everything but the object. Only pictures count whose object the model names, and no longer names
once the object's pixels are noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from vlm_lens.interventions.ablate import Ablate
from vlm_lens.layout.positions import At, Images
from vlm_lens.measures.basic import TokenScores
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.reading.mean import Mean
from vlm_lens.recipes.base import RecipeError, Result
from vlm_lens.recipes.parts.visual import (
    VisualRecipe,
    drawn,
    object_at,
    other_patches,
    right_tokens,
    tabulated,
)
from vlm_lens.sweep.variants import Variant
from vlm_lens.tasks import Row, Task
from vlm_lens.terms import MEAN

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["ImageTokenAblation", "ImageTokenAblationResult"]

OBJECT, RANDOM, LARGEST, REST = "object", "random patches", "patches of largest norm", "all others"
_POINT = "hook_merged"


@dataclass(frozen=True)
class ImageTokenAblation(VisualRecipe):
    """Replaces the image tokens of an object, and of controls, by the mean image token.

    Attributes:
        rings: How many rings of patches around the object are replaced with it, one variant each.
        mean_rows: Over how many validation pictures the mean image token is taken.
    """

    rings: tuple[int, ...] = (0, 1, 2)
    mean_rows: int = 20

    def measure(self, vlm: HookedVLM) -> ImageTokenAblationResult:
        """One sweep for each picture that counts."""
        records, pictures = [], []
        for task in self.chosen_tasks():
            known = task.rows("validation")[: self.mean_rows]
            mean = Mean.of(vlm, [self.query(task, row) for row in known], _POINT, at=Images())
            rows = task.rows(self.split)[: self.rows]
            for number, row in enumerate(self.progress(rows, f"{task.name}: ablation")):
                generator = np.random.default_rng([self.seed, number])
                about, found = self._one(vlm, task, row, mean, generator)
                pictures.append({"task": task.name, "row": number, "input": row.input, **about})
                records += [{"task": task.name, "row": number, **one} for one in found]
        return _result(pd.DataFrame(records), pd.DataFrame(pictures))

    def _one(
        self, vlm: HookedVLM, task: Task, row: Row, mean: Mean, generator: np.random.Generator
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        raw = self.query(task, row)
        prompt = vlm.as_prompt(raw)
        logits, cache = vlm.run_with_cache(prompt, names_filter=_POINT, last_logits=1)
        plain = logits[0, -1].float().softmax(-1)
        token = int(plain.argmax())
        noised = RawPrompt(raw.text, (_noised(raw.images[0], row, generator), *raw.images[1:]))
        about = {
            "named": token in right_tokens(vlm, row),
            "hangs on the pixels": int(vlm.run(noised)[0, -1].argmax()) != token,
        }
        if not all(about.values()):
            return about, []
        norms = cache[_POINT][0].float().norm(dim=-1)
        variants = []
        for ring in self.rings:
            mine = [p for _, p in object_at(row, ring).resolve(prompt.layout)]
            others = other_patches(prompt.layout, mine)
            strongest = sorted(others, key=lambda p: -float(norms[p]))[: len(mine)]
            places = {OBJECT: mine, RANDOM: drawn(generator, others, len(mine)),
                      LARGEST: sorted(strongest), REST: others}  # fmt: skip
            variants += [
                Variant(Ablate(_POINT, At(tuple(p)), by=mean),
                        {"ablated": what, "ring": ring, "tokens": len(p)})
                for what, p in places.items() if p
            ]  # fmt: skip
        swept = vlm.sweep(prompt, variants, measure=TokenScores((token,)), progress=False)
        return about, [
            {**{k: r[k] for k in ("ablated", "ring", "tokens")}, "p": float(plain[token]),
             "kept": r[f"prob({token})"] / float(plain[token]), "named": r[f"rank({token})"] == 0}
            for r in swept.records
        ]  # fmt: skip

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        self.at_least(1, "mean_rows")
        self.some_different("rings")
        if min(self.rings) < 0:
            raise RecipeError(f"{self.named('rings')} is {self.rings}; rings are 0 or more.")
        least, task, _ = self.fewest_rows("validation")
        if not least:
            raise RecipeError(f"{task} has no validation rows to take the mean image token over.")


class ImageTokenAblationResult(Result):
    """What is left of the answer when image tokens are replaced by their mean.

    `table` has a row for each `task` (and their `mean`), `ablated` and `ring`: `kept`, the mean
    share of the answer's probability that is left, with `low` and `high`, a 95 % interval by
    resampling pictures; `named`, the share of pictures whose answer stays the same; `tokens`, how
    many were replaced on average. `tables["pictures"]` says of every picture whether it counted.
    """

    def plots(self) -> dict[str, go.Figure]:
        """What is kept, by ring."""
        from vlm_lens.figures.grouped import grouped_bars

        many = self.table["task"].nunique() > 1
        shown = self.table[self.table["task"] == MEAN] if many else self.table
        figure = grouped_bars(
            shown, x="ring", y="kept", by="ablated", title=self.title,
            subtitle="Share of the answer's probability that is left; interval: 95 % over pictures",
            controls=(RANDOM, LARGEST, REST),
        )  # fmt: skip
        return {"ablation": figure}


def _noised(picture: Image.Image, row: Row, generator: np.random.Generator) -> Image.Image:
    """The picture with noise in place of the pixels that the answer hangs on."""
    pixels = np.array(picture.convert("RGB"))
    for x0, y0, x1, y1 in row.boxes:
        there = pixels[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        there[:] = generator.integers(0, 256, there.shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def _result(rows: pd.DataFrame, pictures: pd.DataFrame) -> ImageTokenAblationResult:
    if rows.empty:
        raise RecipeError(
            "The model names the object of none of these pictures (or goes on to when its pixels "
            f"are noise): {int(pictures['named'].sum())} of {len(pictures)} are named. Ask "
            "otherwise with ask=, or take another task."
        )
    counted = pictures["named"] & pictures["hangs on the pixels"]
    notes = (
        f"{int(counted.sum())} of {len(pictures)} pictures count: named by the model, and no "
        "longer once the object's pixels are noise.",
    )
    return ImageTokenAblationResult(
        tabulated(rows, ["ablated", "ring"], "kept", {"named": "mean", "tokens": "mean"}),
        {"rows": rows, "pictures": pictures}, {"pictures": int(counted.sum())}, notes,
    )  # fmt: skip
