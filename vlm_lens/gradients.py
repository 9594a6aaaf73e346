"""Where gradients are recorded: refused in words where torch could not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vlm_lens.errors import ModelError


def check_records(model: nn.Module | None = None) -> None:
    """Refuses to record gradients where torch cannot.

    Args:
        model: The model that they go through, if one is run.

    Raises:
        ModelError: Within `torch.inference_mode()`, or with weights that were made there.
    """
    if torch.is_inference_mode_enabled():
        raise ModelError(
            "Gradients are needed here, and nothing within torch.inference_mode() records them: "
            "leave it for this call, or use torch.no_grad() in its place, within which it works."
        )
    if model is not None and any(p.is_inference() for p in model.parameters()):
        raise ModelError(
            "Gradients cannot go through this model: its weights were made within "
            "torch.inference_mode(). Load it outside."
        )


@contextmanager
def recording() -> Iterator[None]:
    """Gradients are recorded, also within `torch.no_grad()`.

    Raises:
        ModelError: Within `torch.inference_mode()`.
    """
    check_records()
    with torch.enable_grad():
        yield
