"""What a run is asked to read: which points fire on this prompt, and what of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlm_lens.engine.hooks import Firing
from vlm_lens.errors import PositionError, PromptError
from vlm_lens.hooked.cache import gather
from vlm_lens.layout.positions import Position
from vlm_lens.points.table import NamesFilter, PointTable
from vlm_lens.prompts.prompt import Prompt


def names_to_read(
    points: PointTable, prompt: Prompt, names_filter: NamesFilter, at: Position | None
) -> list[str]:
    """The points that a names_filter means on this prompt.

    Globs and functions select among the points that this prompt computes and, where a position is
    given, that have it; a point asked by its own name must do both.

    Raises:
        PromptError: A point of pictures is asked, and there are none.
        PositionError: A point is asked at a position that it does not have.
        PointError: No such point.
    """
    asked = {names_filter} if isinstance(names_filter, str | tuple) else names_filter
    exact = set() if asked is None or callable(asked) else {points.full_name(n) for n in asked}
    kept = []
    for name in points.match(names_filter):
        try:
            check_fires(points, prompt, [name])
            if at is not None:
                _check_position(points, prompt, name, at)
        except (PromptError, PositionError) as error:
            if name in exact:
                raise type(error)(f"{name}: {error}") from None
            reason = error
            continue
        kept.append(name)
    if not kept:
        raise type(reason)(f"None of the points asked can be read: {reason}")
    return kept


def check_fires(points: PointTable, prompt: Prompt, names: Sequence[str]) -> None:
    """Refuses points that are computed from pictures where a prompt has none.

    Raises:
        PromptError: None of the points would fire.
    """
    if any(layout.images for layout in prompt.layouts):
        return
    if names and all(points[n].needs_pictures for n in names):
        raise PromptError(f"{names[0]} is computed from pictures, and this prompt has none.")


def _check_position(points: PointTable, prompt: Prompt, name: str, at: Position) -> None:
    counts = {len(at.resolve(layout, points[name].space)) for layout in prompt.layouts}
    if counts == {0}:
        raise PositionError(f"{at} holds no position of this prompt.")
    if len(counts) > 1:
        raise PositionError(
            f"{at} holds {' or '.join(map(str, sorted(counts)))} positions in the rows of this "
            "batch: read rows of different size one by one."
        )


def keeper(
    at: Position | None, prompt: Prompt, device: str | torch.device | None
) -> Callable[[Tensor, Firing], Tensor]:
    """A function from what fires to what is kept: all of it, or a copy of some positions."""

    def keep(value: Tensor, firing: Firing) -> Tensor:
        if at is not None:
            value = gather(value, firing.point, at, prompt.layouts)
        return value if device is None else value.to(device)

    return keep
