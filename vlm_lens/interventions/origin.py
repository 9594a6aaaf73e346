"""Whether a value is used on the model that it was read on."""

from __future__ import annotations

from vlm_lens.errors import VectorError
from vlm_lens.interventions.base import ModelFacts


def check_same_model(origin: ModelFacts, model: ModelFacts, what: str = "vector") -> None:
    """Refuses a value that was read on another model.

    Raises:
        VectorError: Other weights; where some cannot be read, another unembedding; where that
            cannot be read either, another name.
    """
    kinds = [(origin.signs, model.signs)] if origin.dtype != model.dtype else []
    kinds += [(origin.weights, model.weights)] if not kinds else []
    kinds += [(origin.unembed_hash, model.unembed_hash), (origin.name, model.name)]
    here, there = next((pair for pair in kinds if all(pair)), (None, None))
    if here == there:
        return
    same_head = origin.unembed_hash and origin.unembed_hash == model.unembed_hash
    other = (
        " with other weights behind the same output layer (before or after more training, or with "
        "another adapter on)"
    )
    raise VectorError(
        f"This {what} was read on {origin.name}, and the model is {model.name}"
        f"{other if same_head else ''}. If the transfer is meant (base language model to "
        "vision-language model, say), write allow_transfer=True."
    )


__all__ = ["check_same_model"]
