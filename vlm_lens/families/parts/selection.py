"""Some pictures of a batch: the tensors by which a model reads them, and no others.

What a picture becomes in the text then need not be computed with all its neighbours, and not twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_lens.layout.pictures import ImageLayout


def by_rows(
    tensors: Mapping[str, Tensor], pictures: Sequence[ImageLayout], numbers: Sequence[int]
) -> dict[str, Tensor] | None:
    """Rows of each tensor: one a picture or, where pictures have several, one a frame.

    Args:
        tensors: What the model reads pictures from.
        pictures: All pictures of the batch.
        numbers: Which of them, in order; one may be there more than once.

    Returns:
        The rows; `None` where a tensor has neither one a picture nor one a frame.
    """
    frames = [[row for row, _ in p.vision.sequences] for p in pictures]
    n_frames = sum(map(len, frames))
    found = {}
    for name, tensor in tensors.items():
        if len(tensor) == len(pictures):
            rows = list(numbers)
        elif len(tensor) == n_frames:
            rows = [frame for n in numbers for frame in frames[n]]
        else:
            return None
        found[name] = tensor[torch.tensor(rows, device=tensor.device)]
    return found


def by_stretches(tensor: Tensor, lengths: Sequence[int], numbers: Sequence[int]) -> Tensor:
    """Of a tensor that holds one picture after the other, the stretches of some."""
    parts = tensor.split(list(lengths))
    return torch.cat([parts[n] for n in numbers])
