"""How often a lens reads what is there: states whose content is known, and a control.

```
share(lens, layer)    = positions with one of their words among the lens's top k / positions
shuffled(lens, layer) = the same states, asked for the words of another prompt
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import Position
from vlm_lens.lenses.base import Lens, LensError
from vlm_lens.tokens import string_tokens

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Known = tuple[Any, Position, Sequence[str]]  # a prompt, positions in it, words for what is there
_LETTERS = 3  # fewer say nothing of a word


@dataclass(frozen=True, eq=False)
class ReadingScore:
    """Shares by lens and layer.

    Attributes:
        table: A row a lens and layer: `lens`, `layer`, `share`, `shuffled`, `positions`.
        k: Among how many leading entries a word is looked for.
        model: The model's name.
    """

    table: pd.DataFrame
    k: int
    model: str

    def best(self) -> pd.DataFrame:
        """Of each lens the layer at which it reads most, the best lens first."""
        order = self.table.sort_values("share", ascending=False, kind="stable")
        return order.groupby("lens", sort=False).head(1).reset_index(drop=True)

    def plot(self) -> go.Figure:
        """Share by layer, a line a lens; dashed, asked for another prompt's words."""
        from vlm_lens.figures.reading_score import reading_score_figure

        return reading_score_figure(self.table, k=self.k, model=self.model)

    def __repr__(self) -> str:
        return f"ReadingScore({self.model}, top {self.k})\n{self.best().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return self.best().to_html(index=False, float_format="{:.2f}".format)


@answering
def score_reading(
    vlm: HookedModel,
    known: Sequence[Known],
    lenses: Mapping[str, Lens],
    *,
    k: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> ReadingScore:
    """Scores lenses on states whose content is known.

    A word counts as read where an entry is the word, or its first token of at least three letters
    (a word of several tokens has no other); capitals and spaces do not count.

    Args:
        vlm: The model.
        known: Prompts, each with positions and the words for what is there; `tasks.contents`
            makes them of a task's pictures.
        lenses: Name -> lens; their `at` and `k` are replaced.
        k: Among how many leading entries a word is looked for.
        seed: Of the order in which the words of other prompts are asked for.
        progress: Whether to show a progress bar.

    Raises:
        LensError: Fewer than two prompts, no lens, or prompts that all have the same words.
    """
    import pandas as pd

    if len(known) < 2 or not lenses:
        raise LensError("Reading is scored on at least two prompts, of which each is the other's "
                        "control, with at least one lens.")  # fmt: skip
    words = [tuple(w.lower() for w in words) for _, _, words in known]
    other = _others(words, seed)
    forms = [_forms(vlm, one) for one in words]
    counts: dict[tuple[str, Any], np.ndarray] = {}
    for i, (prompt, at, _) in enumerate(tqdm(known, disable=not progress, unit="prompt")):
        made = vlm.as_prompt(prompt)
        for name, lens in lenses.items():
            seen = replace(lens, at=at, k=k).run(vlm, made)
            tops = seen.rows[0].top_ids
            for number, layer in enumerate(seen.layers):
                for ids in tops[number].tolist():
                    labels = [seen.labels[one].strip().lower() for one in ids]
                    hits = [_hit(labels, forms[j], words[j]) for j in (i, other[i])]
                    counts[name, layer] = counts.get((name, layer), 0) + np.array([*hits, 1])
    table = pd.DataFrame(
        {"lens": name, "layer": layer, "share": mine / n, "shuffled": theirs / n, "positions": n}
        for (name, layer), (mine, theirs, n) in counts.items()
    )
    return ReadingScore(table, k, vlm.name)


def _others(words: Sequence[tuple[str, ...]], seed: int) -> list[int]:
    """For each prompt another one, with other words."""
    generator = np.random.RandomState(seed)
    found = []
    for mine in words:
        rest = [j for j, theirs in enumerate(words) if not set(mine) & set(theirs)]
        if not rest:
            raise LensError(f"No prompt has other words than {', '.join(mine)}: no control.")
        found.append(int(generator.choice(rest)))
    return found


def _forms(vlm: HookedModel, words: Sequence[str]) -> set[str]:
    """The words and their first tokens, as this tokenizer writes them."""
    found = set(words)
    for word in words:
        for text in (word, word.capitalize(), f" {word}", f" {word.capitalize()}"):
            pieces = [s.strip() for s in string_tokens(vlm.tokenizer, vlm.to_tokens(text))]
            first = next((p for p in pieces if p), "")
            if len(first) >= min(_LETTERS, len(word)):
                found.add(first.lower())
    return found


def _hit(labels: Sequence[str], forms: set[str], words: Sequence[str]) -> bool:
    return any(label in forms or any(label.startswith(word) for word in words) for label in labels)


__all__ = ["Known", "ReadingScore", "score_reading"]
