"""InternVL: tiles and a thumbnail, a pixel shuffle, a Qwen2 or Llama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.base import Architecture
from vlm_lens.families.parts.pixels import Size, size_entry
from vlm_lens.families.parts.projected import Picture, ProjectedFamily
from vlm_lens.families.parts.shuffled_tiles import Frame, tiles_and_whole
from vlm_lens.points.point import Point


class InternVLFamily(ProjectedFamily):
    """`InternVLForConditionalGeneration`; pictures, no videos."""

    name = "internvl"
    model_types = ("internvl",)

    def features_path(self, config: Any) -> tuple[str | int, ...]:
        """The last hidden state is normed, others are not."""
        layer = config.vision_feature_layer
        return ("last_hidden_state",) if layer == -1 else ("hidden_states", layer)

    def projector_points(self, config: Any, d_in: int) -> list[Point]:
        """The projector reads blocks of patches, already put together."""
        return super().projector_points(config, d_in * _merge(config) ** 2)

    def pictures(
        self,
        model: torch.nn.Module,
        arch: Architecture,
        inputs: Mapping[str, Tensor],
        processor: Any,
        sizes: Sequence[Size] | None,
    ) -> list[Picture]:
        """A picture is one run of image tokens: its tiles, then its thumbnail."""
        config, pixels = model.config, inputs["pixel_values"]
        patch = config.vision_config.patch_size
        patch = (patch, patch) if isinstance(patch, int) else (patch[1], patch[0])
        shape = (pixels.shape[-1], pixels.shape[-2])
        frame = Frame(shape, patch, _merge(config), arch.cfg.vision.n_class_tokens)
        marks = inputs["input_ids"] == arch.image_token_id
        runs = [n for row in marks.tolist() for n in _runs(row)]
        counts = [n // frame.n_tokens for n in runs]
        if sum(runs) != len(pixels) * frame.n_tokens or any(n % frame.n_tokens for n in runs):
            raise PromptError(
                f"{len(pixels)} frames (tiles and thumbnails) of {frame.n_tokens} positions need "
                f"{len(pixels) * frame.n_tokens} image tokens; the prompt holds {sum(runs)}, in "
                f"runs of {runs}. Write one <image> for each picture."
            )
        if sizes and len(counts) != len(sizes):
            raise PromptError(
                f"The text has {len(counts)} runs of image tokens for {len(sizes)} pictures: write "
                "<image> for each, and leave the tokens around it to the processor."
            )
        pictures, first = [], 0
        for n, size in zip(counts, sizes or [None] * len(counts), strict=True):
            tiling = _tiling(n - 1, processor, size) if n > 1 else None
            pictures.append(tiles_and_whole(first, n, frame, size, tiling))
            first += n
        return pictures


def _merge(config: Any) -> int:
    return int(1 / config.downsample_ratio)


def _runs(marks: Sequence[bool]) -> list[int]:
    """The lengths of the stretches of true values."""
    found, length = [], 0
    for mark in (*marks, False):
        if mark:
            length += 1
        elif length:
            found.append(length)
            length = 0
    return found


def _tiling(n_tiles: int, processor: Any, size: Size | None) -> tuple[int, int] | None:
    """Rows and columns of tiles, by the image processor's own function."""
    image_processor = getattr(processor, "image_processor", None)
    home = import_module(type(image_processor).__module__)
    if size is None or not hasattr(home, "get_optimal_tiled_canvas"):
        return None
    tile = (size_entry(image_processor.size, "height"), size_entry(image_processor.size, "width"))
    limits = (image_processor.min_patches, image_processor.max_patches)
    cols, rows = home.get_optimal_tiled_canvas((size[1], size[0]), tile, *limits)
    return (rows, cols) if rows * cols == n_tiles else None
