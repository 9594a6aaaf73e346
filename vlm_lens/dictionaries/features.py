"""The features of one prompt, as scores over tokens and patches."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import torch
import xarray as xr
from torch import Tensor

from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.scores.places import sequence
from vlm_lens.scores.scores import Scores, scores

if TYPE_CHECKING:
    import pandas as pd

    from vlm_lens.hooked.hooked_model import HookedModel, Interventions
    from vlm_lens.points.point import Point
    from vlm_lens.prompts.prompt import Prompt

Chosen = Sequence[SupportsIndex] | SupportsIndex | None
_BLOCK = 1024  # places that are encoded together


@dataclass(frozen=True, eq=False, repr=False)
class FeatureScores(Scores):
    """Scores by `position` and `feature`; `top` chooses features."""

    def top(self, k: int = 10, *, largest: str = "value") -> Self:  # type: ignore[override]
        """The `k` features whose largest score at any position is largest, the strongest first.

        `to_dataframe()` gives numbers; `over_picture()` lays each feature over the picture.

        Args:
            k: How many.
            largest: `"value"`, or `"magnitude"` for scores with a sign.

        Raises:
            ScoresError: Another `largest`, or `k` below 1.
        """
        table = self._entries(self.values.size, largest)  # checks both
        if operator.index(k) < 1:
            return self._entries(k, largest)  # type: ignore[return-value]
        first = list(dict.fromkeys(table["feature"].tolist()))[: operator.index(k)]
        return self._with(self.values.sel(feature=first))  # type: ignore[return-value]

    def entries(self, k: int = 10, *, largest: str = "value") -> pd.DataFrame:
        """The `k` largest single scores, one row each, with what stands there."""
        return self._entries(k, largest)

    def _entries(self, k: int, largest: str) -> pd.DataFrame:
        return Scores.top(self, max(k, 1) if k > 0 else k, largest=largest)

    def _with(self, values: xr.DataArray) -> Scores:  # type: ignore[override]
        if "feature" in values.dims:
            return replace(self, values=values)
        fields = {name: getattr(self, name) for name in _FIELDS}
        return Scores(values, **fields)

    def _largest(self) -> pd.DataFrame | None:
        if not self.shape or not self.values.size:
            return None
        signed = bool((self.values < 0).any())
        return self._entries(10, "magnitude" if signed else "value")

    def _labels(self, axis: str) -> list[str]:
        labels = super()._labels(axis)
        if axis != "feature":
            return labels
        words = self.about.get("labels", {})
        return [f"{label} {words[label]}" if label in words else label for label in labels]

    def _lines(self) -> list[str]:
        shown = {k: v for k, v in self.about.items() if k != "labels"}
        return Scores._lines(replace(self, about=shown))


_FIELDS = ("name", "layout", "pictures", "space", "marked", "about")


def features(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompt: Prompt,
    at: Position | int | Sequence[int] | None = None,
    features: Chosen = None,
    interventions: Interventions = (),
) -> FeatureScores:
    """What a dictionary sees at each position of a prompt; see `Dictionary.features`."""
    one_row(prompt)
    point = dictionary.point_on(vlm)
    pairs = pairs_at(prompt, point, at)
    _, cache = vlm.run_with_cache(
        prompt, names_filter=point.name, interventions=interventions, last_logits=1
    )
    values, chosen = encoded(dictionary, at_pairs(cache[point.name], pairs), features)
    return as_scores(dictionary, vlm, prompt, point, pairs, values, chosen, name="activation")


def encoded(dictionary: DictionaryValue, x: Tensor, features: Chosen) -> tuple[Tensor, list[int]]:
    """The features of places, `[places, chosen]`, and which: by default those that are not 0.

    Places are encoded in blocks, so that no more than one block has all features at a time.
    """
    blocks = x.split(_BLOCK)
    if features is not None:
        chosen = list(dictionary.numbers(features))  # type: ignore[arg-type]
    else:
        on = torch.zeros(dictionary.n_features, dtype=torch.bool)
        for block in blocks:
            on |= (dictionary.encode(block) != 0).any(0).cpu()
        chosen = on.nonzero().flatten().tolist()
    parts = [dictionary.encode(block)[:, chosen].detach().float().cpu() for block in blocks]
    return torch.cat(parts), chosen


def as_scores(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompt: Prompt,
    point: Point,
    pairs: Sequence[tuple[int, int]],
    values: Tensor,
    chosen: Sequence[int],
    *,
    name: str,
) -> FeatureScores:
    """Numbers by place and feature as scores."""
    made = scores(
        values.numpy(),
        {"position": [p for _, p in pairs], "feature": list(chosen)},
        None if point.space == "text" else [row for row, _ in pairs],
        name=name,
        layout=prompt.layout,
        pictures=prompt.images[0] if prompt.images else (),
        space=point.space,
        about={
            "model": vlm.name, "point": point.name, "dictionary": _of(dictionary),
            "labels": dict(dictionary.labels),
        },
    )  # fmt: skip
    fields: dict[str, Any] = {field: getattr(made, field) for field in _FIELDS}
    return FeatureScores(made.values, **fields)


def one_row(prompt: Prompt) -> None:
    """Refuses a batch of several rows.

    Raises:
        DictionaryError: It is one.
    """
    if len(prompt) != 1:
        raise DictionaryError(
            f"Features are read of one prompt at a time; this is a batch of {len(prompt)} rows."
        )


def pairs_at(
    prompt: Prompt, point: Point, at: Position | int | Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """(row, position) of everything at a point, or of some positions.

    Raises:
        DictionaryError: The prompt has no such place.
    """
    if at is not None:
        pairs = as_position(at).resolve(prompt.layout, point.space)
    else:
        pairs = sequence(prompt.layout, point.space)
    if not pairs:
        raise DictionaryError(f"This prompt has no place at {point.name}: it shows no picture.")
    return pairs


def at_pairs(value: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """An activation at (row, position) pairs, `[pairs, d]`, heads side by side."""
    rows, positions = torch.tensor(pairs, device=value.device).T
    return value[rows, positions].flatten(1)


def _of(dictionary: DictionaryValue) -> str:
    return dictionary.about.get("origin") or dictionary.about.get("layout", "of one's own")


__all__ = [
    "Chosen",
    "FeatureScores",
    "as_scores",
    "at_pairs",
    "encoded",
    "features",
    "one_row",
    "pairs_at",
]
