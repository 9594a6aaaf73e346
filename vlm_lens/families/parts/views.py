"""Views for modules of which only a run shows what axes their tensors have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_lens.errors import PointError


@dataclass(frozen=True)
class RowsOfPicturesView:
    """Picture features with any axes before their width, shown as `[image, pos, width]`.

    `[image, rows, cols, width]` is shown row by row, `[pos, width]` as one image.

    Attributes:
        width: What the last axis must be; any where it is `None`.
    """

    width: int | None = None

    def split(self, x: Tensor, rows: int) -> Tensor:
        """A view of the same memory.

        Raises:
            PointError: Another number of axes, or another width.
        """
        if x.dim() not in (2, 3, 4) or self.width not in (None, x.shape[-1]):
            width = "width" if self.width is None else self.width
            raise PointError(
                f"A tensor of picture features has shape {list(x.shape)}, and [..., {width}] was "
                "expected: describe the model in a family of its own (CONTRIBUTING.md)."
            )
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if x.dim() == 3 else x.flatten(1, 2)

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`, laid out in memory as the original: kernels round by layout."""
        value = value.reshape(original.shape)
        if value.stride() == original.stride():
            return value
        return torch.empty_like(original).copy_(value)
