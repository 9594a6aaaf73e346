"""Gradients: recorded where torch can, refused in words where not, taken without underflow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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


def gradients_at(
    value: Tensor, at: Sequence[Tensor], logits: Tensor, *, again: bool = False
) -> list[Tensor]:
    """The gradient of a number at some tensors, zeros where it does not hang on one.

    Float16 ends at 6e-8, and the derivative of a small probability is less than that already at the
    logits. There the backward pass is of a power of two times the number, and what it gives is
    divided in float32, as training in float16 does (Micikevicius et al. 2018, arXiv 1710.03740).

    Args:
        value: The number.
        at: The tensors.
        logits: What the number is made of.
        again: Whether the graph is needed once more.

    Raises:
        ModelError: The model's own code records no gradients.
    """
    if not value.requires_grad:
        raise ModelError(
            "No gradient can be taken: this model's own code keeps them from being recorded "
            "(torch.no_grad() around a forward, say)."
        )
    half = any(x.dtype == torch.float16 for x in at)
    scale = _scale(value, logits) if half else 1.0
    found = torch.autograd.grad(
        value, at, torch.full_like(value, scale), retain_graph=again, allow_unused=True
    )
    return [
        torch.zeros_like(x) if g is None else g.float() / scale if half else g
        for x, g in zip(at, found, strict=True)
    ]


def _scale(value: Tensor, logits: Tensor) -> float:
    """A power of two that makes the largest derivative by a logit about 1."""
    scale = 1.0
    while scale < 2.0**100:
        (found,) = torch.autograd.grad(
            value, logits, torch.full_like(value, scale), retain_graph=True, allow_unused=True
        )
        largest = 0.0 if found is None else float(found.abs().max())
        if not largest < 2.0**-8:
            return scale if not 0 < largest < 1 else scale * 2.0 ** -math.floor(math.log2(largest))
        scale *= 2.0**12
    return 1.0  # it does not hang on the logits
