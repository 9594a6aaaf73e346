"""The places of a position in a batch, as an index: what is picked of an activation there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_lens.errors import PositionError
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position


@dataclass(frozen=True, eq=False)
class PickedPlaces:
    """Places of an activation, as many in each prompt.

    Attributes:
        rows: Index on the activation's first axis, `[prompts * places]`.
        positions: Index on its positions, `[prompts * places]`.
        n_prompts: The number of prompts.
    """

    rows: Tensor
    positions: Tensor
    n_prompts: int

    def pick(
        self,
        value: Tensor,
        *,
        pattern: bool,
        position_major: bool = False,
        queries: Sequence[int] | None = None,
    ) -> Tensor:
        """What stands there, as a copy: `[prompt, places, ...]`.

        Args:
            value: The activation.
            pattern: Whether it is one of attention, `[batch, head, query, key]`, a form that is
                kept: `[prompt, head, places, key]`.
            position_major: Whether heads of a pattern come after places, as elsewhere.
            queries: Of which positions a pattern holds the rows; `None` for all.
        """
        value = value.transpose(1, 2) if pattern else value
        positions = self.positions
        if queries is not None:
            row_of = {position: row for row, position in enumerate(queries)}
            positions = torch.tensor([row_of[p] for p in positions.tolist()])
        index = (self.rows.to(value.device), positions.to(value.device))
        picked = value[index].unflatten(0, (self.n_prompts, -1))
        return picked.transpose(1, 2) if pattern and not position_major else picked

    def put(self, value: Tensor, picked: Tensor, *, pattern: bool) -> Tensor:
        """The activation with what `pick` gave of it in its places, as a new tensor."""
        value, picked = (x.transpose(1, 2) if pattern else x for x in (value, picked))
        index = (self.rows.to(value.device), self.positions.to(value.device))
        whole = value.index_put(index, picked.flatten(0, 1).to(value.device))
        return whole.transpose(1, 2) if pattern else whole


def places_of(at: Position, space: str, layouts: Sequence[Layout]) -> PickedPlaces:
    """The places of a position.

    Args:
        at: The position.
        space: Whose positions: `"text"`, `"vision"` or `"projector"`.
        layouts: The layout of each prompt.

    Raises:
        PositionError: There are none, or other numbers of them in each prompt.
    """
    pairs = [at.resolve(layout, space) for layout in layouts]
    counts = sorted({len(p) for p in pairs})
    if len(counts) > 1:
        raise PositionError(
            f"{at} holds {' or '.join(map(str, counts))} positions in the rows of this batch: "
            "read rows of different size one by one."
        )
    if not counts[0]:
        raise PositionError(f"{at} holds no position of this prompt, so there is nothing to read.")
    rows, positions = zip(*(pair for row in pairs for pair in row), strict=True)
    return PickedPlaces(torch.tensor(rows), torch.tensor(positions), len(layouts))


__all__ = ["PickedPlaces", "places_of"]
