"""Views of the shipped pictures: shifted, scaled, turned, lit and roughened at random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

__all__ = ["Views"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Views:
    """Pictures in memory, at twice the size that the tower sees.

    The picture itself is never a view: it is what is tested on.

    Args:
        folder: The folder of the pictures.
        names: The pictures, in the order of their numbers.
        size: The side that the tower sees.
        device: Where they are kept.
    """

    def __init__(self, folder: Path, names: Sequence[str], size: int, device: str = "cpu"):
        opened = [Image.open(folder / name).convert("RGB") for name in names]
        bicubic = Image.Resampling.BICUBIC
        self.folder, self.names, self.size = folder, tuple(names), size
        self._large = self._stack(opened, 2 * size, bicubic).to(device)
        self._exact = self._stack(opened, size, bicubic).to(device)
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _STD)
        )

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._large)

    def exact(self, index: Tensor) -> Tensor:
        """Pixels as the processor makes them, `[picture, 3, side, side]`."""
        return (self._exact[index].float() / 255 - self._mean) / self._std

    def drawn(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """A view of each picture, `[picture, 3, side, side]`.

        Args:
            index: The pictures' numbers, `[picture]`.
            generator: On the pictures' device; every draw comes from it.
        """
        device, count = self._large.device, len(index)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            drawn = torch.rand(count, *shape, generator=generator, device=device)
            return low + (high - low) * drawn

        angle, scale = uniform(-0.16, 0.16), uniform(0.82, 1.2)
        theta = torch.zeros(count, 2, 3, device=device)
        theta[:, 0, 0] = theta[:, 1, 1] = scale * angle.cos()
        theta[:, 0, 1] = -scale * angle.sin()
        theta[:, 1, 0] = scale * angle.sin()
        theta[:, :, 2] = uniform(-0.14, 0.14, 2)
        grid = functional.affine_grid(theta, [count, 3, 2 * self.size, 2 * self.size], False)
        pixels = self._large[index].float() / 255
        pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        pixels = functional.avg_pool2d(pixels, 2)
        pixels = pixels * uniform(0.75, 1.25, 1, 1, 1) + uniform(-0.1, 0.1, 1, 1, 1)
        noise = torch.randn(pixels.shape, generator=generator, device=device)
        pixels = pixels + uniform(0.0, 0.06, 1, 1, 1) * noise
        return (pixels.clamp(0, 1) - self._mean) / self._std

    @staticmethod
    def _stack(opened: Sequence[Image.Image], side: int, how: Image.Resampling) -> Tensor:
        arrays = [np.asarray(one.resize((side, side), how)) for one in opened]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
