"""Positions of variants behind a prompt, and what blocks are given for them.

Of what a block is given beside the stream, masks and rotary embeddings depend on positions. They
are made once for all positions; a block gets their beginning, as far as positions stand in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.engine.baseline import POSITION_AXES, Baseline
from vlm_lens.engine.not_replayable import NotReplayable
from vlm_lens.engine.recorder import check_argument, is_of_pictures

_ALIGNED = 16  # numbers: rows of a mask that begin elsewhere are copied by kernels of GPUs


@dataclass(frozen=True)
class Columns:
    """The positions of one variant behind the prompt.

    Attributes:
        first: Its first column.
        start: The position of the prompt that this is.
        layer: The block from which on it stands there; the number of blocks if none.
    """

    first: int
    start: int
    layer: int


class FurtherPositions:
    """The positions of variants behind a prompt.

    Args:
        run: The outline of the run.
        real: Which positions of the prompt are no padding, `[rows, pos]`, if it says.
        starts: For each variant, its first position and block; in order of blocks.

    Attributes:
        columns: For each variant, its positions.
        widths: How many positions stand in each block, and before the final norm.
    """

    def __init__(self, run: Baseline, real: Tensor | None, starts: Sequence[tuple[int, int]]):
        length = self._length = run.length
        self._real = real
        self._sdpa = getattr(run.model.config, "_attn_implementation", None) == "sdpa"
        self.columns: list[Columns] = []
        position, whose = list(range(length)), [0] * length
        for number, (start, layer) in enumerate(starts, 1):
            self.columns.append(Columns(len(position), start, layer))
            position += range(start, length)
            whose += [number] * (length - start)
        self.widths = [length] * (run.n_layers + 1)
        for columns in self.columns:
            for layer in range(columns.layer, run.n_layers + 1):
                self.widths[layer] += length - columns.start
        self._position, self._whose = torch.tensor(position), torch.tensor(whose)
        self._begins = torch.tensor([length, *(c.start for c in self.columns)])
        self._on: dict[torch.device, Tensor] = {}
        # by name and identity: the argument, kept so that no identity recurs, and what cuts it
        self._known: dict[tuple[str, int], tuple[Any, Callable[[int], Any] | None]] = {}

    def positions(self, device: torch.device) -> Tensor:
        """The position of the prompt that each column is, there once for all blocks."""
        if device not in self._on:
            self._on[device] = self._position.to(device)
        return self._on[device]

    def arguments(self, named: Mapping[str, Any], width: int, stream: Tensor) -> dict[str, Any]:
        """Those arguments of a block that depend on positions, for all that stand there.

        Args:
            named: What the model gives the block beside the stream.
            width: How many positions stand there.
            stream: The stream.

        Raises:
            NotReplayable: An argument that is not understood.
        """
        new = {}
        for name, value in named.items():
            key = name, id(value)
            if key not in self._known:
                self._known[key] = value, self._cut(name, value, stream)
            cut = self._known[key][1]
            if cut is not None:
                new[name] = cut(width)
        return new

    def _cut(self, name: str, value: Any, stream: Tensor) -> Callable[[int], Any] | None:
        """What gives an argument for so many positions; `None` if it does not depend on them."""
        if name.startswith("past_key_value"):
            return None
        if name == "attention_mask" and (value is None or isinstance(value, Tensor)):
            check_argument(name, value)
            mask = self._mask(value, stream)
            return lambda width: mask[..., :width, :width]
        if isinstance(value, tuple):
            cuts = [self._cut(name, one, stream) for one in value]
            if all(cut is None for cut in cuts):
                return None
            return lambda width: tuple(
                one if cut is None else cut(width) for one, cut in zip(value, cuts, strict=True)
            )
        check_argument(name, value)
        if not isinstance(value, Tensor) or is_of_pictures(name, value):
            return None
        axis = value.dim() + (-1 if name == "cache_position" else POSITION_AXES[name][0])
        if value.shape[axis] != self._length:
            return None
        grown = value.index_select(axis, self.positions(value.device))
        return lambda width: grown.narrow(axis, 0, width)

    def _mask(self, mask: Tensor | None, stream: Tensor) -> Tensor:
        """Which keys each position sees: the model's own rule, and of variants only its own."""
        length, device = self._length, (stream if mask is None else mask).device
        position, whose = self.positions(device), self._whose.to(device)
        begins = self._begins.to(device)[whose]  # from where on a position sees its own variant
        seen = whose == whose[:, None]
        seen |= (whose == 0) & (position < begins[:, None])
        if mask is None:
            return self._added((seen & (position <= position[:, None]))[None, None], stream)
        if mask.shape[-2:] != (length, length):
            raise NotReplayable("its masks are of another form")
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        real = self._real
        queries = allowed if real is None else allowed & real[:, None, :, None].bool().to(device)
        if queries.triu(1).any():
            raise NotReplayable("some positions see later ones")
        grown = mask[..., position, :][..., position]
        if mask.dtype == torch.bool:
            return self._added(grown & seen, stream)
        return grown.masked_fill(~seen, torch.finfo(mask.dtype).min)

    def _added(self, seen: Tensor, stream: Tensor) -> Tensor:
        """A mask of truth values as what is added to scores, as torch makes it in every block."""
        if not self._sdpa or torch.is_autocast_enabled(stream.device.type):
            return seen
        width = seen.shape[-1]
        aligned = -(-width // _ALIGNED) * _ALIGNED
        mask = seen.new_zeros(*seen.shape[:-1], aligned, dtype=stream.dtype)
        mask[..., :width].masked_fill_(~seen, -torch.inf)
        return mask[..., :width]
