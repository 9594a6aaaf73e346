"""How many positions each picture takes in the text, as the model's own features say."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor, nn

from vlm_lens.families.parts.probe_pictures import evaluating, features_function
from vlm_lens.locks import lock_of


def lengths_of_features(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[int] | None:
    """The length of each picture's features; `None` where the model gives them in one piece.

    Since 5.0 transformers splits them by picture where pictures differ in length. Where it gives
    one tensor, its rows may be pictures or their tiles, and say nothing.

    Args:
        model: The model; its tower is run.
        inputs: A prompt's tensors.
    """
    function = features_function(model)
    if function is None:
        return None
    takes = inspect.signature(function).parameters
    given = {name: x for name, x in inputs.items() if name in takes}
    try:
        with lock_of(model), evaluating(model):
            out = function(**given)
    except Exception:  # noqa: BLE001  whatever a model may raise on tensors that its forward joins
        return None
    found: Any = getattr(out, "pooler_output", None)
    if not isinstance(found, list | tuple):
        return None
    if not found or not all(isinstance(x, Tensor) and x.dim() >= 2 for x in found):
        return None
    return [x.shape[:-1].numel() for x in found]


def rows_are_pictures(image_processor: Any) -> bool:
    """Whether a processor makes one row of pixels of a picture, of a large and a long one too."""
    if image_processor is None:
        return False
    shapes = ((1200, 1200), (1500, 400))
    try:
        made = [image_processor(Image.new("RGB", s), return_tensors="pt") for s in shapes]
        return all(x["pixel_values"].dim() == 4 and len(x["pixel_values"]) == 1 for x in made)
    except Exception:  # noqa: BLE001  whatever a processor may raise on what it was not made for
        return False
