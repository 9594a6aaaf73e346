"""Pixtral's processor without torchvision.

Its module in transformers imports one function, which takes the size of a picture after resizing,
from the module of the torchvision image processor; the PIL image processor's module has the same.
"""

from __future__ import annotations

import sys
from typing import Any

_WANTED = "transformers.models.pixtral.image_processing_pixtral"


def pixtral_processor_class() -> type:
    """`PixtralProcessor`, also where torchvision is not installed."""
    from transformers.models.pixtral import image_processing_pil_pixtral
    from transformers.utils import is_torchvision_available

    stands_in = not is_torchvision_available()
    if stands_in:
        sys.modules[_WANTED] = image_processing_pil_pixtral
    try:
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    finally:
        if stands_in:
            sys.modules.pop(_WANTED, None)
    return PixtralProcessor


def load_pixtral_processor(config: Any, where: str, **hub: Any) -> Any:
    """The processor of a checkpoint with a Pixtral tower; `None` for another tower."""
    if config.vision_config.model_type != "pixtral":
        return None
    return pixtral_processor_class().from_pretrained(where, **hub)
