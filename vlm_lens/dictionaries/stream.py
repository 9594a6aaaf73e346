"""Activations of many prompts, batch by batch: no more than one batch is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.errors import PositionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.kinds import PAD
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import Position
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.reading.many import batches
from vlm_lens.scores.places import sequence

IMAGE, TEXT, SPECIAL = "image", "text", "special"


@dataclass(frozen=True)
class PlacesRead:
    """What stands at the places of some prompts.

    Attributes:
        x: The activation, `[places, d]`, heads side by side.
        kinds: `"image"`, `"text"` or `"special"` of each place.
        images: Which picture of its prompt each place is of, `None` for text.
        numbers: Which prompt each place is of.
        pairs: Row and position of each place in the activation.
        prompt: The prompts as they ran.
    """

    x: Tensor
    kinds: list[str]
    images: list[int | None]
    numbers: list[int]
    pairs: list[tuple[int, int]]
    prompt: Prompt


@torch.no_grad()
def places_read(
    vlm: HookedModel,
    point: Point,
    prompts: Sequence[Any],
    *,
    at: Position | None = None,
    batch_size: int = 16,
) -> Iterator[PlacesRead]:
    """Reads a point of many prompts, in batches of like length.

    Args:
        vlm: The model.
        point: The point.
        prompts: Texts, RawPrompts or Prompts.
        at: Which places; all but padding by default.
        batch_size: How many prompts run together at the most.

    Raises:
        DictionaryError: No prompt, or a point of scores or patterns.
    """
    if point.on_demand:
        raise DictionaryError(f"{point.name} has no features by position: it holds weights.")
    listed = list(prompts)
    if not listed:
        raise DictionaryError("Give at least one prompt.")
    if any(not isinstance(p, str) and not hasattr(p, "text") for p in listed):
        listed = [vlm.as_prompt(p) for p in listed]
    with vlm.reusing_pictures():
        for batch in batches(vlm, listed, batch_size):
            prompt = vlm.as_prompt(batch.prompts)
            found, owners, kinds, images = [], [], [], []
            for number, layout in zip(batch.rows, prompt.layouts, strict=True):
                counted, space = layout.counted(point.space)
                image_of = {
                    (row, p): image.index
                    for image in counted.images
                    for row, positions in image.space(space).sequences
                    for p in positions
                }
                for row, position in places_of(layout, point.space, at):
                    found.append((row, position))
                    owners.append(number)
                    images.append(image_of.get((row, position)))
                    kinds.append(IMAGE if images[-1] is not None else counted.kinds[position])
            if not found:
                continue
            _, cache = vlm.run_with_cache(prompt, names_filter=point.name, last_logits=1)
            rows, positions = torch.tensor(found).T
            value = cache[point.name]
            x = value[rows.to(value.device), positions.to(value.device)].flatten(1)
            yield PlacesRead(x, kinds, images, owners, found, prompt)


def places_of(layout: Layout, space: str, at: Position | None = None) -> list[tuple[int, int]]:
    """(row, position) of some places of a prompt, none where it has none; padding left out."""
    if at is None:
        pairs = sequence(layout, space)
        counted, own = layout.counted(space)
        return pairs if own != "text" else [p for p in pairs if counted.kinds[p[1]] != PAD]
    try:
        return at.resolve(layout, space)
    except PositionError:
        return []


__all__ = ["IMAGE", "SPECIAL", "TEXT", "PlacesRead", "places_of", "places_read"]
