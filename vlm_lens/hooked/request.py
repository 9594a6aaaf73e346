"""What a run is asked to read: which points fire on this prompt, and what of them is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.engine.firing import Firing
from vlm_lens.errors import PointError, PositionError, PromptError
from vlm_lens.hooked.picked_places import PickedPlaces, places_of
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position
from vlm_lens.points.point import Point
from vlm_lens.points.table import NamesFilter, PointTable
from vlm_lens.prompts.prompt import Prompt


def names_to_read(
    points: PointTable,
    prompt: Prompt,
    names_filter: NamesFilter,
    at: Position | None,
    *,
    generates: bool = False,
) -> list[str]:
    """The points that a names_filter means on this prompt.

    Globs and functions select among the points that this prompt computes and, where a position is
    given, that have it; a point asked by its own name must do both. Where the run `generates`, a
    position may hold new tokens alone.

    Raises:
        PromptError: A point of pictures is asked, and there are none.
        PositionError: A point is asked at a position that it does not have.
        PointError: No such point.
    """
    selected = points.match(names_filter)
    asked = {names_filter} if isinstance(names_filter, str | tuple) else names_filter
    exact = set() if asked is None or callable(asked) else {points.full_name(n) for n in asked}
    kept = []
    for name in selected:
        try:
            check_fires(points, prompt, [name])
            if at is not None:
                _check_position(points, prompt, name, at, generates)
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
    if any(layout.images or layout.videos for layout in prompt.layouts):
        return
    if names and all(points[n].needs_pictures for n in names):
        raise PromptError(f"{names[0]} is computed from pictures, and this prompt has none.")


def check_fired(
    points: PointTable, prompt: Prompt, asked: Iterable[str], fired: Collection[str]
) -> None:
    """Refuses the result of a run in which a point that was asked for did not fire.

    Raises:
        PointError: A point that this prompt computes did not fire.
    """
    pictures = any(layout.images or layout.videos for layout in prompt.layouts)
    due = [n for n in asked if pictures or not points[n].needs_pictures]
    silent = [n for n in due if n not in fired]
    if silent:
        raise PointError(
            f"{silent[0]} did not fire in this run"
            + (f", nor did {len(silent) - 1} others of the {len(due)} asked" if silent[1:] else "")
            + ": the model did not call the module that it stands at (a block that is skipped or "
            "replaced, code that calls the layer's function itself, a compiled model), so nothing "
            "was read or changed there. Leave it out, or run the model without what replaces it; "
            "vlm_lens.testing.conformance(vlm, prompt) lists every point that is dead."
        )


def _check_position(
    points: PointTable, prompt: Prompt, name: str, at: Position, generates: bool
) -> None:
    counts = {len(at.resolve(layout, points[name].space)) for layout in prompt.layouts}
    if counts == {0} and not generates:
        raise PositionError(f"{at} holds no position of this prompt.")
    if len(counts) > 1:
        raise PositionError(
            f"{at} holds {' or '.join(map(str, sorted(counts)))} positions in the rows of this "
            "batch: read rows of different size one by one."
        )


@dataclass(frozen=True)
class Keeper:
    """What of an activation is kept: all of it, or a copy of some positions; and where.

    Attributes:
        places: The places, by whose positions they are; `None` for all.
        device: Where it is kept; `None` for where it is computed.
    """

    places: Mapping[str, PickedPlaces] | None
    device: str | torch.device | None

    @classmethod
    def of(
        cls, at: Position | None, points: Iterable[Point], layouts: tuple[Layout, ...], device: Any
    ) -> Keeper:
        """What keeps some points at a position, of everything they are at if it is `None`.

        Raises:
            PositionError: The position has other numbers of places in each prompt.
        """
        if at is None:
            return cls(None, device)
        spaces = {point.space for point in points}
        return cls({space: places_of(at, space, layouts) for space in spaces}, device)

    def keep(self, value: Tensor, firing: Firing) -> Tensor:
        """What is kept of an activation."""
        if self.places is not None:
            pattern = "query" in firing.point.axes
            places = self.places[firing.point.space]
            value = places.pick(value, pattern=pattern, queries=firing.queries)
        return value if self.device is None else value.to(self.device)

    def queries(self, point: Point) -> frozenset[int] | None:
        """Of scores and patterns, the positions of the queries that are kept; `None` for all."""
        if self.places is None or "query" not in point.axes:
            return None
        return frozenset(self.places[point.space].positions.tolist())

    def put_back(self, value: Tensor, kept: Tensor, firing: Firing) -> Tensor:
        """The activation made of what was kept of it, so that gradients pass through that."""
        if self.places is None:
            return kept.to(value.device)
        pattern = "query" in firing.point.axes
        return self.places[firing.point.space].put(value, kept, pattern=pattern)
