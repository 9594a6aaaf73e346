"""Ablation: an activation knocked out, by zero, by a mean, or by a given value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm_lens.errors import InterventionError
from vlm_lens.interventions.at_points import AtPoints
from vlm_lens.interventions.base import Place, Target
from vlm_lens.interventions.shapes import shaped
from vlm_lens.layout.positions import All, Position
from vlm_lens.ops import MEAN, SET, Op
from vlm_lens.serial import savable

ZERO, ANY_MEAN, PROMPT_MEAN, PICTURE_MEAN = "zero", "mean", "prompt_mean", "picture_mean"


@savable
@dataclass(frozen=True)
class Ablate(AtPoints):
    """Takes an activation's information away.

    Attributes:
        point: A point, a glob, or a list of them.
        at: Where in the prompt.
        by: What is written instead. `"zero"`; `"prompt_mean"`, the mean, in the same run, over all
            positions of the same prompt, padding left out, at points of the language model;
            `"picture_mean"`, the mean, in the same run, over all positions of the same picture,
            those that `Images(k)` means, at tower and projector and at positions of pictures in
            the language model; `"mean"`, whichever of the two it can only be (at positions of
            pictures in the language model it could be either, and is refused); a tensor, or the
            mean over a data set, `Mean.of(vlm, prompts, points)`.
        heads: Which heads, at points that have them; all by default.
    """

    point: str | tuple[str, ...]
    at: Position
    by: Any = ZERO
    heads: tuple[int, ...] | None = None

    _value: ClassVar[str] = "by"

    def _frozen(self, points: tuple[str, ...], at: Position) -> dict[str, Any]:
        if not isinstance(self.by, str):
            return super()._frozen(points, at)
        if self.by not in (ZERO, ANY_MEAN, PROMPT_MEAN, PICTURE_MEAN):
            raise InterventionError(
                "Ablate takes by='zero', 'prompt_mean', 'picture_mean', 'mean', a tensor or "
                f"Mean.of(vlm, prompts, points); it got {self.by!r}."
            )
        if self.by != ZERO and at.at_generated:
            raise InterventionError(
                "A mean over positions is not known while tokens are generated one by one: "
                "give the mean as a tensor, or as Mean.of(vlm, prompts, points)."
            )
        return {}

    def op_at(self, place: Place, target: Target) -> Op:
        """A `mean` or a `set` op."""
        if self.by == ZERO:
            return place.op(SET, value=shaped(torch.zeros(()), place))
        if isinstance(self.by, str):
            return place.op(MEAN, **_mean(self.by, target, place))
        return place.op(SET, value=self.shaped_at(place, target))


def _mean(by: str, target: Target, place: Place) -> dict[str, Tensor]:
    """The tensors of a `"mean"` op: what enters each mean, and which one each place takes.

    Raises:
        InterventionError: There is no such mean at one of the places, or it could be two.
    """
    name, space = place.point.name, place.point.space
    in_text = space in ("text", "encoder")
    if place.point.on_demand:
        raise InterventionError(
            f"A mean over positions of {name} mixes queries that see different keys: ablate it by "
            "'zero' or by a tensor."
        )
    pictures = [
        [(row, p) for row, positions in image.space(own).sequences for p in positions]
        for layout, own in (whole.counted(space) for whole in target.layouts)
        for image in layout.images
    ]
    picture_of = {pair: n for n, pairs in enumerate(pictures) for pair in pairs}
    wanted = list(zip(place.rows, place.positions, strict=True))
    if by == ANY_MEAN and in_text and any(pair in picture_of for pair in wanted):
        raise InterventionError(
            f"by='mean' at positions of a picture in {name} could be the mean over the picture or "
            "over the whole prompt: write by='picture_mean' or by='prompt_mean'."
        )
    if by == PROMPT_MEAN and not in_text:
        raise InterventionError(
            f"{name} holds pictures, each by itself, so there is no mean over the prompt: write "
            "by='picture_mean'."
        )
    if in_text and by != PICTURE_MEAN:
        groups = [All().resolve(layout, space) for layout in target.layouts]
        group_of = {pair: n for n, pairs in enumerate(groups) for pair in pairs}
    else:
        groups, group_of = pictures, picture_of
    outside = [pair for pair in wanted if pair not in group_of]
    if outside:
        raise InterventionError(
            f"Position {outside[0][1]} of {name} belongs to no picture, so there is no mean of its "
            "picture: write by='prompt_mean'."
        )
    used = {n: i for i, n in enumerate(dict.fromkeys(group_of[pair] for pair in wanted))}
    pool = [(*pair, i) for n, i in used.items() for pair in groups[n]]
    return {
        "pool": torch.tensor(pool, dtype=torch.long),
        "takes": torch.tensor([used[group_of[pair]] for pair in wanted], dtype=torch.long),
    }
