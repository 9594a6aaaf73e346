"""Pixels: the shipped pictures, as the processor sees them, and with augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vlm_lens.zoo.train.organism import Organism

__all__ = ["Album"]


class Album:
    """The pictures in memory, at the processor's size and at twice that for augmentation.

    Args:
        folder: The folder of the pictures.
        names: The pictures.
        organism: Whose processor it is.
        processor: The processor.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], organism: Organism, processor: Any
    ) -> None:
        self._index = {name: i for i, name in enumerate(sorted(set(names)))}
        self.size = organism.shape.image_size
        opened = [Image.open(folder / name).convert("RGB") for name in self._index]
        self._exact = organism.pixels(processor, opened)
        large = (2 * self.size, 2 * self.size)
        self._large = torch.from_numpy(
            np.stack([np.asarray(i.resize(large, Image.Resampling.BICUBIC)) for i in opened])
        ).permute(0, 3, 1, 2)
        self._mean = torch.tensor(processor.image_processor.image_mean).view(1, -1, 1, 1)
        self._std = torch.tensor(processor.image_processor.image_std).view(1, -1, 1, 1)

    def exact(self, names: Sequence[str]) -> torch.Tensor:
        """Return pixels exactly as the processor makes them, `[image, 3, height, width]`."""
        return self._exact[[self._index[n] for n in names]]

    def augmented(self, names: Sequence[str], rng: np.random.Generator) -> torch.Tensor:
        """Shift, scale, turn, brighten and roughen the pictures; leave a fifth as they are.

        Args:
            names: The pictures.
            rng: The generator; every draw comes from it.

        Returns:
            Pixels, `[image, 3, height, width]`.
        """
        index = [self._index[n] for n in names]
        count = len(index)
        angle = rng.uniform(-0.14, 0.14, count)
        scale = rng.uniform(0.85, 1.2, count)
        shift = rng.uniform(-0.14, 0.14, (count, 2))
        theta = np.zeros((count, 2, 3))
        theta[:, 0, 0] = theta[:, 1, 1] = scale * np.cos(angle)
        theta[:, 0, 1] = -scale * np.sin(angle)
        theta[:, 1, 0] = scale * np.sin(angle)
        theta[:, :, 2] = shift
        grid = functional.affine_grid(
            torch.from_numpy(theta).float(), [count, 3, 2 * self.size, 2 * self.size], False
        )
        pixels = self._large[index].float() / 255
        pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        pixels = functional.avg_pool2d(pixels, 2)
        gain = torch.from_numpy(rng.uniform(0.8, 1.2, (count, 1, 1, 1))).float()
        lift = torch.from_numpy(rng.uniform(-0.1, 0.1, (count, 1, 1, 1))).float()
        rough = rng.uniform(0, 0.06, (count, 1, 1, 1)) * rng.standard_normal(pixels.shape)
        pixels = (pixels * gain + lift + torch.from_numpy(rough).float()).clamp(0, 1)
        pixels = (pixels - self._mean) / self._std
        plain = torch.from_numpy(rng.random(count) < 0.2).view(-1, 1, 1, 1)
        return torch.where(plain, self._exact[index], pixels)
