"""Copies of pictures that join the tower's blocks where they first differ.

Copies A, B, C of pictures, A differing from block 1 on, B from 2 on, C from 3 on; recorded is what
the plain run's block gave for the picture of that copy:

    block 0    recorded                     A B C
    block 1    A computed,   recorded         B C
    block 2    A B computed, recorded           C
    block 3    A B C computed

So every block hands on all rows, whatever the model does with them, and computes few.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class JoiningRows:
    """Rows of a tower that runs copies of pictures.

    Args:
        blocks: The tower's blocks.
        join: For each row, the block from which on it is computed, ascending.
        recorded: `(block, first row) -> what the plain run gave for the rows from there on`.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        join: Sequence[int],
        recorded: Callable[[int, int], Tensor],
    ):
        self._rows, self._recorded = len(join), recorded
        # where rows are missing; all pass the first block, whose input transformers may keep
        self._partly = {
            i: (block, n)
            for i, block in enumerate(blocks)
            if i and 0 < (n := bisect_right(join, i)) < len(join)
        }

    @contextmanager
    def completing(self) -> Iterator[None]:
        """While open, blocks hand on all rows.

        Hooks on blocks that are put on later see those that are computed.
        """
        with ExitStack() as stack:
            for i, (block, n) in self._partly.items():

                def complete(
                    module: nn.Module, args: tuple, output: Any, i: int = i, n: int = n
                ) -> Any:
                    return on_stream(output, lambda x: torch.cat([x, self._recorded(i, n)]))

                handle = block.register_forward_hook(complete, prepend=True)
                stack.callback(handle.remove)
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """While open, blocks are given those rows that they compute, by hooks before all others."""
        with ExitStack() as stack:
            for block, n in self._partly.values():

                def cut(
                    module: nn.Module, args: tuple, kwargs: Mapping[str, Any], n: int = n
                ) -> tuple[tuple, dict[str, Any]]:
                    kept = {name: self._first(value, n) for name, value in kwargs.items()}
                    return tuple(self._first(value, n) for value in args), kept

                handle = block.register_forward_pre_hook(cut, prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _first(self, value: Any, n: int) -> Any:
        """The first rows of an argument that has all of them."""
        has_all = isinstance(value, Tensor) and value.dim() > 1 and len(value) == self._rows
        return value[:n] if has_all else value


def counts_rows(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
    """Whether a block's tensors are its stream and a mask, whose first axis counts rows.

    Args:
        args: What the block was given.
        kwargs: Likewise, by name.
        output: What it gave.
    """
    given = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    tensors = {name: value for name, value in given.items() if not _is_plain(value)}
    stream = tensors.pop("0", None) if args else tensors.pop("hidden_states", None)
    mask = tensors.pop("attention_mask", tensors.pop("1", None))
    made = output if isinstance(output, Tensor) else output[0]
    if tensors or not isinstance(stream, Tensor) or stream.dim() != 3 or stream.shape != made.shape:
        return False
    return mask is None or (
        isinstance(mask, Tensor) and mask.dim() == 4 and len(mask) in (1, len(stream))
    )


def on_stream(output: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A block's output with `fn` on the residual stream in it."""
    if isinstance(output, Tensor):
        return fn(output)
    return (fn(output[0]), *output[1:])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
