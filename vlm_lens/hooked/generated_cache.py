"""What is read while tokens are generated: one row for each place of the prompt and new token.

```
prompt        p0 .. pL-1            read once, in the prefill
new tokens    t0  t1 .. tn-1        t0 is predicted at pL-1, ti at the position of ti-1
rows          Last() + Generated()  pL-1, t0, .. tn-2: where t0, .. tn-1 are predicted
```
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_lens.engine.firing import Firing, Handler
from vlm_lens.errors import PointError, PositionError, PromptError
from vlm_lens.layout.positions import Generated, Last, Position
from vlm_lens.points.point import Point
from vlm_lens.points.table import PointTable
from vlm_lens.prompts.prompt import Prompt

PREDICTING = Last() + Generated()  # where each new token is predicted


class GenerationReader:
    """Reads points at places of the prompt and at new tokens.

    Args:
        points: The model's points.
        prompt: The prompt, padded on the left.
        names: The points that are read.
        at: At which places.
        steps: How many tokens are generated at the most.

    Raises:
        PositionError: The rows of the batch have different numbers of such places.
        PromptError: New tokens are read of a generation that reads none.
    """

    def __init__(
        self, points: PointTable, prompt: Prompt, names: Sequence[str], at: Position, steps: int
    ):
        self._length, self._steps = prompt.length, steps
        self._places: dict[str, Tensor] = {}
        self._new = at.at_generated
        inside = at.in_prompt
        if inside is None and steps < 2:
            raise PromptError(
                "The first new token comes from the prompt's last position, so a generation of one "
                "token reads none: take max_new_tokens of 2 or more, or Last() + Generated()."
            )
        for space in {points[name].space for name in names}:
            pairs = [[] if inside is None else inside.resolve(row, space) for row in prompt.layouts]
            if len({len(row) for row in pairs}) > 1:
                raise PositionError(
                    f"{at} holds other numbers of positions in the rows of this batch: generate "
                    "from rows of different size one by one."
                )
            self._places[space] = torch.tensor([[p for _, p in row] for row in pairs])
        self._points = {name: points[name] for name in names}
        # pieces [batch, rows, ...] in order, and the last position read: none is read twice
        self.kept: dict[str, list[Tensor]] = {name: [] for name in names}
        self.sinks: dict[str, list[Tensor]] = {name: [] for name in names}  # beside the keys
        self.until = dict.fromkeys(names, -1)

    def handlers(self) -> dict[str, list[Handler]]:
        """The handlers to run with."""
        new = range(self._length, self._length + self._steps) if self._new else ()
        found = {}
        for name, point in self._points.items():
            queries = None
            if "query" in point.axes:
                queries = frozenset([*self._places[point.space].flatten().tolist(), *new])
            found[name] = [Handler(self._read, writes=False, queries=queries)]
        return found

    def _read(self, x: Tensor, firing: Firing) -> None:
        point, name = firing.point, firing.point.name
        value = x.transpose(1, 2) if "query" in point.axes else x
        span = range(firing.offset, firing.offset + value.shape[1])
        held = list(firing.queries) if firing.queries is not None else list(span)
        local = {position: i for i, position in enumerate(held)}
        places = self._places[point.space]
        pieces = []
        if self.until[name] < 0 and places.numel():
            lost = [p for p in places.flatten().tolist() if p not in local]
            if lost:
                raise PointError(
                    f"{point.name} is not computed at position {lost[0]} of the prompt while "
                    "tokens are generated: read it with run_with_cache."
                )
            index = torch.tensor([[local[p] for p in row] for row in places.tolist()])
            batch = torch.arange(len(value))[:, None]
            pieces.append(value[batch.to(value.device), index.to(value.device)])
        new = [p for p in held if self._new and p >= self._length and p > self.until[name]]
        if new:
            pieces.append(value[:, [local[p] for p in new]].clone())
        self.until[name] = max(self._length - 1, *held, self.until[name])
        length = self.until[name] + 1
        n_keys = firing.n_keys
        if n_keys is not None and n_keys < value.shape[-1]:
            self.sinks[name] += [piece[..., n_keys:] for piece in pieces]
            pieces = [piece[..., :n_keys] for piece in pieces]
        self.kept[name] += [self._by_key(piece, point, length) for piece in pieces]

    def _by_key(self, value: Tensor, point: Point, length: int) -> Tensor:
        """Scores or a pattern with a key for each position so far.

        A cache of a sliding window holds the last keys only; one of fixed size holds more.
        """
        if "query" not in point.axes or point.keys:
            return value
        value = value[..., :length]
        missing = length - value.shape[-1]
        return torch.nn.functional.pad(value, (missing, 0), value=_unseen(point, value.dtype))

    def values(self) -> dict[str, Tensor]:
        """What was read: `[batch, rows, ...]`, patterns `[batch, head, rows, key]`.

        Raises:
            PromptError: New tokens were asked, and every row ended with its first.
        """
        found = {}
        for name, kept in self.kept.items():
            point = self._points[name]
            if not kept:
                raise PromptError(
                    "Every row ended with its first new token, so none was read: take "
                    "Last() + Generated(), or eos_token_id=None."
                )
            if "query" in point.axes:
                width, fill = max(k.shape[-1] for k in kept), _unseen(point, kept[0].dtype)
                kept = [
                    torch.nn.functional.pad(k, (0, width - k.shape[-1]), value=fill) for k in kept
                ]
            if self.sinks[name]:
                both = zip(kept, self.sinks[name], strict=True)
                kept = [torch.cat(pair, -1) for pair in both]
            value = torch.cat(kept, 1)
            found[name] = value.transpose(1, 2) if "query" in point.axes else value
        return found


def _unseen(point: Point, dtype: torch.dtype) -> float:
    """What a key is to a query that it comes after: what a model's mask makes of it."""
    return torch.finfo(dtype).min if point.name.endswith("hook_attn_scores") else 0.0
