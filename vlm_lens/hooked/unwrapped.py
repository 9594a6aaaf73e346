"""What a user may take for a model: unwrapped where that is safe, refused in words where not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vlm_lens.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AUTO = "AutoModelForImageTextToText or AutoModelForCausalLM"


def as_model(given: Any) -> PreTrainedModel:
    """The model inside what was given.

    A PEFT model stands around the model whose layers it has changed in place: that one is taken,
    adapters and all, which a warning says.

    Raises:
        ModelError: Nothing that has a transformers model with an output layer inside.
    """
    if isinstance(given, str | Path):
        raise ModelError(
            f"HookedVLM wraps a model that is loaded; {str(given)!r} is a name: write "
            f"HookedVLM.from_pretrained({str(given)!r})."
        )
    if isinstance(given, type):
        raise ModelError(
            f"{given.__name__} is a class: load a model, {given.__name__}.from_pretrained(...)."
        )
    if isinstance(getattr(given, "model", None), nn.Module) and hasattr(given, "task"):
        raise ModelError(
            f"{type(given).__name__} is a pipeline: pass what it holds, "
            "HookedVLM(pipe.model, pipe.processor or pipe.tokenizer)."
        )
    if not isinstance(given, nn.Module):
        raise ModelError(
            f"HookedVLM(model, processor) wraps a transformers model, not a {type(given).__name__}."
        )
    if hasattr(given, "_orig_mod"):
        raise ModelError(
            "This model is compiled, and compiled code calls no hooks: pass the model itself, "
            "model._orig_mod."
        )
    parallel = nn.DataParallel | nn.parallel.DistributedDataParallel
    if isinstance(given, parallel) or type(given).__name__ == "FullyShardedDataParallel":
        raise ModelError(
            f"{type(given).__name__} stands around a model and runs copies or pieces of it: pass "
            "the model itself, model.module, or spread it with device_map=."
        )
    if hasattr(given, "peft_config") and hasattr(given, "get_base_model"):
        return _without_peft(given)
    if not hasattr(given, "config"):
        raise ModelError(
            f"{type(given).__name__} has no config, so it is no transformers model: load one with "
            f"{_AUTO}."
        )
    if not callable(getattr(given, "generate", None)):
        head = getattr(given, "get_output_embeddings", lambda: None)()
        lacks = (
            "has no output layer over a vocabulary, so it gives no logits"
            if head is None
            else "gives logits of tokens that are hidden from it, and does not say what comes next"
        )
        raise ModelError(f"{type(given).__name__} {lacks}: load the checkpoint with {_AUTO}.")
    return given  # type: ignore[return-value]  # a PreTrainedModel, or remote code like one


def _without_peft(given: Any) -> PreTrainedModel:
    kinds = {str(getattr(c, "peft_type", "")) for c in given.peft_config.values()}
    if any(getattr(c, "is_prompt_learning", False) for c in given.peft_config.values()):
        raise ModelError(
            f"{', '.join(sorted(kinds))} puts learned vectors before every prompt, outside the "
            "model, so positions would not be those of the prompt: pass the model without it, "
            "model.get_base_model()."
        )
    warnings.warn(
        f"{type(given).__name__} was unwrapped: vlm.hf_model is the model inside, with the "
        f"adapter's layers ({', '.join(sorted(kinds))}) where they are switched on.",
        stacklevel=5,
    )
    return as_model(given.get_base_model())


def check_processor(processor: Any) -> None:
    """Refuses what cannot read text.

    Raises:
        ModelError: A name, a class, a model, or a processor of pictures alone.
    """
    if processor is None:
        return
    found = type(processor).__name__
    if isinstance(processor, str | Path):
        raise ModelError(
            f"A processor is loaded first: AutoProcessor.from_pretrained({str(processor)!r})."
        )
    if isinstance(processor, type | nn.Module) or not callable(processor):
        found = getattr(processor, "__name__", found)
        raise ModelError(
            f"A processor or tokenizer is wanted, HookedVLM(model, processor), not {found}: load "
            "it with AutoProcessor or AutoTokenizer."
        )
    if not hasattr(processor, "tokenizer") and not hasattr(processor, "convert_ids_to_tokens"):
        raise ModelError(
            f"{found} reads pictures alone and no text: load the whole with AutoProcessor."
        )
