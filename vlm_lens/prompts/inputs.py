"""A processor's tensors as a model takes them: checked, on its device, in its dtype."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families import Architecture
from vlm_lens.points.placement import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """The device on which a model's token embedding computes."""
    return device_of(model.get_input_embeddings()) or model.device


def input_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of a model's token embedding, which its language model computes in.

    A model's own `dtype` is that of its first weight, which BLIP-2, for one, keeps in float32.
    """
    embedding: Any = model.get_input_embeddings()
    dtype = embedding.weight.dtype
    return dtype if dtype.is_floating_point else model.dtype


def as_inputs(
    given: Mapping[str, Any], model: PreTrainedModel, arch: Architecture
) -> dict[str, Tensor]:
    """The tensors that a model reads, floating ones in its dtype.

    Args:
        given: A processor's output.
        model: The model.
        arch: Its parts.

    Raises:
        PromptError: No `input_ids`, or ids, masks or shapes that do not fit the model.
    """
    takes = inspect.signature(model.forward).parameters
    given = dict(given)
    pictures_alone = arch.encoder is not None and arch.encoder.space == "vision"
    if pictures_alone and "input_ids" in given:  # text is the beginning of the answer
        given.setdefault(arch.ids, given.pop("input_ids"))
        given.pop("attention_mask", None)
    if "input_ids" not in given and not pictures_alone:
        raise PromptError(
            f"A processor's output holds 'input_ids'; this mapping holds {sorted(given)}."
        )
    device, dtype = input_device(model), input_dtype(model)
    tensors = {k: _moved(k, v, device, dtype) for k, v in given.items() if v is not None}
    if arch.encoder is not None:
        tensors[arch.ids] = _answer_ids(tensors, arch, device)
    if "token_type_ids" not in takes:
        tensors.pop("token_type_ids", None)  # some tokenizers make them for every model
    for name in dict.fromkeys(("input_ids", arch.ids)):
        if name in tensors:
            _check_ids(tensors[name], model, arch)
    _check_mask(tensors)
    return tensors


def _answer_ids(tensors: Mapping[str, Tensor], arch: Architecture, device: torch.device) -> Tensor:
    """What the decoder of an encoder-decoder reads: by default the token that begins an answer.

    Raises:
        PromptError: It begins with another token, or is padded.
    """
    assert arch.encoder is not None
    start, found = arch.encoder.start, tensors.get(arch.ids)
    if found is None:
        if start is None:
            raise PromptError(
                "This model does not say with which token an answer begins: give "
                "decoder_input_ids with the tensors."
            )
        rows = len(next(iter(tensors.values())))
        return torch.full((rows, 1), start, device=device)
    mask = tensors.get("decoder_attention_mask")
    if mask is not None and not mask.all():
        raise PromptError(
            "Rows of decoder_input_ids of different lengths are padded, and the model counts "
            "padding as a part of the answer: run them one by one."
        )
    if start is not None and found.dim() == 2 and not (found[:, :1] == start).all():
        raise PromptError(
            f"decoder_input_ids begin with the token that every answer of this model begins with, "
            f"{start}, and these begin with {found[:, 0].tolist()}: put it before them."
        )
    return found


def _moved(name: str, value: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(
            f"{name!r} is no tensor ({type(value).__name__}): ask the processor for tensors, "
            "processor(..., return_tensors='pt', padding=True)."
        ) from error
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _check_ids(ids: Tensor, model: PreTrainedModel, arch: Architecture) -> None:
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise PromptError(f"input_ids must be [batch, pos], not {list(ids.shape)}.")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise PromptError(f"input_ids are token numbers, so integers, not {ids.dtype}.")
    # some models embed more tokens than they can say
    embedding: Any = model.get_input_embeddings()
    d_vocab = max(arch.cfg.d_vocab, embedding.weight.shape[0])
    if len(ids) and (int(ids.max()) >= d_vocab or int(ids.min()) < 0):
        raise PromptError(
            f"A token id lies outside the model's vocabulary of {d_vocab} (found "
            f"{int(ids.min())}..{int(ids.max())}): is this the processor of another model?"
        )


def _check_mask(tensors: Mapping[str, Tensor]) -> None:
    mask, ids = tensors.get("attention_mask"), tensors.get("input_ids")
    if mask is None or ids is None:
        return
    if mask.shape != ids.shape:
        raise PromptError(
            f"attention_mask must be {list(ids.shape)}, as input_ids are, not {list(mask.shape)}."
        )
    if not (mask != 0).any(dim=1).all():
        row = int((mask != 0).any(dim=1).logical_not().nonzero()[0])
        raise PromptError(f"Row {row} of the attention_mask is all zeros: it has no token to read.")


def left_padded(tensors: Mapping[str, Tensor], after: list[int]) -> dict[str, Tensor]:
    """The same rows with the padding after each moved before it.

    Args:
        tensors: A prompt's tensors.
        after: How many positions of padding follow each row.

    Raises:
        PromptError: A tensor whose rows cannot be told.
    """
    shape = tensors["input_ids"].shape
    moved = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.shape[:2] == shape and not name.startswith("pixel"):
            rows = zip(tensor, after, strict=True)
            moved[name] = torch.stack([row.roll(n, dims=0) for row, n in rows])
        elif name == "position_ids":
            raise PromptError(
                "position_ids of more than two axes cannot be moved with padding: pad on the left, "
                "processor(..., padding_side='left')."
            )
    return moved
