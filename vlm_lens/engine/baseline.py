"""What one plain run leaves for its variants, and how they take it.

A change at block l, position p of a causal model cannot reach earlier blocks or earlier positions.
So a variant needs, of the plain run, the residual stream that enters block l from position p on,
and the keys and values of the positions before; everything else about it is computed. Where the
model's masks let earlier positions see later ones (within a picture, say), p is the earliest one
that is reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.tower import TowerReplay
from vlm_lens.families import Architecture

# The arguments of a block that depend on positions, and which of their axes, counted from the end,
# are positions and batch rows.
POSITION_AXES = {
    "attention_mask": (-2, -4),
    "position_embeddings": (-2, -3),
    "position_ids": (-1, -2),
}


@dataclass
class Baseline:
    """A recorded plain run.

    Attributes:
        model: The Hugging Face model.
        arch: Its parts.
        length: Positions of the prompt.
        n_rows: Rows of the prompt.
        calls: For each block, the arguments it was called with, by name.
        resid_pre: For each block, the residual stream that entered it, `[rows, pos, d_model]`.
        resid_post: What left the last block, likewise.
        keys: For each block, its keys, `[rows, heads, pos, d_head]`.
        values: For each block, its values, likewise.
        logits: `[rows, pos, d_vocab]`, of the last positions only if so asked.
        added: Block -> what the model adds to the stream before it, `[rows, pos, d_model]`.
        reached: For each position, the earliest one that a change there or later can reach.
        next_positions: For each row, the position that rotary embeddings give the next token.
        tower: What its tower computed, if that was recorded.
        no_tower: Why there is none, if it was asked for.
    """

    model: nn.Module
    arch: Architecture
    length: int
    n_rows: int
    logits: Tensor
    resid_post: Tensor
    calls: list[dict[str, Any]] = field(default_factory=list)
    resid_pre: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    added: dict[int, Tensor] = field(default_factory=dict)
    reached: list[int] = field(default_factory=list)
    next_positions: Tensor | None = None
    tower: TowerReplay | None = None
    no_tower: str = ""

    @property
    def n_layers(self) -> int:
        """How many blocks the language model has."""
        return self.arch.decoder.stack.size.n_layers

    def call(self, layer: int, start: int, prompt_rows: Tensor) -> dict[str, Any]:
        """The arguments of a block for the suffix from `start` on.

        Where the model leaves causal order to its attention function, there is no mask among them:
        that function is right from position 0 only, so a suffix that begins later is given one.

        Args:
            layer: The block.
            start: The first position of the suffix.
            prompt_rows: For each row of the batch, the prompt's row that it varies.
        """
        rows = None if self.n_rows == 1 else prompt_rows
        return {
            name: _suffix_of(name, value, start, rows) for name, value in self.calls[layer].items()
        }

    def prefix(self, layer: int, start: int, prompt_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values before `start`, one row for each row of the batch."""
        both = []
        for stored in (self.keys[layer], self.values[layer]):
            stored = stored[:, :, :start]
            same = self.n_rows == 1
            both.append(
                stored.expand(len(prompt_rows), -1, -1, -1)
                if same
                else stored[prompt_rows.to(stored.device)]
            )
        return both[0], both[1]

    def causal_mask(self, start: int, device: torch.device) -> Tensor | None:
        """Which keys each position of a suffix sees, `[1, 1, suffix, length]`, True where it does.

        `None` where none is needed: from position 0 on, and for a single query, which sees all.
        """
        if start == 0 or self.length - start == 1:
            return None
        query = torch.arange(start, self.length, device=device)[:, None]
        return (torch.arange(self.length, device=device)[None, :] <= query)[None, None]


def _suffix_of(name: str, value: Any, start: int, rows: Tensor | None) -> Any:
    """The part of a block's argument that belongs to the suffix, and to some rows of the prompt."""
    if isinstance(value, tuple):
        return tuple(_suffix_of(name, v, start, rows) for v in value)
    if not isinstance(value, Tensor):
        return value
    if name == "cache_position":
        return value[start:]
    if name not in POSITION_AXES:
        return value
    pos_axis, row_axis = POSITION_AXES[name]
    length = value.shape[pos_axis]
    part = value.narrow(pos_axis, start, length - start) if length > 1 else value
    if rows is not None and part.dim() >= -row_axis and part.shape[row_axis] > 1:
        part = part.index_select(part.dim() + row_axis, rows.to(part.device))
    return part
