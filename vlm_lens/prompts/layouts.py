"""The layouts of a prompt's rows: what stands where in the processor's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_lens.families import Architecture
from vlm_lens.layout.kinds import PAD, SPECIAL, TEXT, Kind
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.pictures import ImageSpace
from vlm_lens.layout.typed import NOWHERE, Typed
from vlm_lens.tokens import IMAGE, spans_of_text, string_tokens, text_pieces

_IN_ENCODER = (
    "Pictures stand in what the encoder reads, prompt.layout.encoder, and not in the answer"
)


def layouts_of(
    tensors: Mapping[str, Tensor],
    arch: Architecture,
    pictures: Sequence,
    clips: Sequence,
    tokenizer: Any,
) -> tuple[Layout, ...]:
    """The layout of each row of a prompt.

    Args:
        tensors: The prompt's tensors.
        arch: The model's parts.
        pictures: The pictures of each row.
        clips: The videos of each row.
        tokenizer: The model's tokenizer, if there is one.
    """
    layouts = _layouts(tensors, "input_ids", pictures, clips, tokenizer)
    if arch.encoder is not None:
        answers = _layouts(tensors, arch.ids, pictures, clips, tokenizer)
        both = zip(answers, layouts, strict=True) if layouts else ()
        layouts = [_answering(*one) for one in both] or answers
    return tuple(layouts)


def as_typed(layout: Layout, text: str, mark: str, tokenizer: Any) -> Layout:
    """A layout with the text as it was typed, where its tokens give back another form of it.

    Args:
        layout: The layout.
        text: What was typed, `<image>` for each picture.
        mark: What the processor is given for that.
        tokenizer: The tokenizer.
    """
    said = [i for i, kind in enumerate(layout.kinds) if kind in (TEXT, SPECIAL)]
    pieces = layout.pieces or layout.strings
    if "".join(pieces[i] for i in said).endswith(text.replace(IMAGE, "")):
        return layout
    written = text.replace(IMAGE, mark)
    spans = spans_of_text(tokenizer, written, [layout.token_ids[i] for i in said], [mark])
    if spans is None:
        return layout
    held = dict(zip(said, spans, strict=True))
    for i, span in held.items():
        # a space that a tokenizer puts before a word is said to hold the word's first letter
        if span and not pieces[i].strip() and pieces[i] and written[slice(*span)].strip():
            held[i] = None
    every = tuple(held.get(i) or NOWHERE for i in range(len(layout)))
    return replace(layout, typed=Typed(written, every))


def _answering(answer: Layout, asked: Layout) -> Layout:
    """The layout of a decoder, with that of what its encoder reads."""
    nowhere = ImageSpace(why_no_grid=_IN_ENCODER)
    pictures = tuple(replace(picture, text=nowhere) for picture in asked.images)
    return replace(answer, images=pictures, encoder=asked)


def _layouts(
    tensors: Mapping[str, Tensor], name: str, pictures: Sequence, clips: Sequence, tokenizer: Any
) -> list[Layout]:
    """The layout of each row of a tensor of tokens; none where there is no such tensor."""
    if name not in tensors:
        return []
    own = name == "input_ids"
    mask = tensors.get("attention_mask") if own else None
    return [
        _layout(
            row, ids, torch.ones_like(ids) if mask is None else mask[row],
            pictures[row] if own or "input_ids" not in tensors else (),
            clips[row] if own else (), tokenizer,
        )
        for row, ids in enumerate(tensors[name])
    ]  # fmt: skip


def _layout(
    row: int, ids: Tensor, mask: Tensor, pictures: Sequence, videos: Sequence, tokenizer: Any
) -> Layout:
    special = set(getattr(tokenizer, "all_special_ids", ()) or ())
    kinds = [Kind(SPECIAL if int(i) in special else TEXT) for i in ids]
    for picture in pictures:
        for position in picture.positions:
            kinds[position] = Kind(f"image {picture.index}")
    for video in videos:
        for position in video.positions:
            kinds[position] = Kind(f"video {video.index}")
    kinds = [k if m else Kind(PAD) for k, m in zip(kinds, mask.tolist(), strict=True)]
    token_ids = tuple(ids.tolist())
    strings, pieces = string_tokens(tokenizer, token_ids), text_pieces(tokenizer, token_ids)
    return Layout(
        token_ids, strings, tuple(kinds), row, tuple(pictures),
        videos=tuple(videos), pieces=() if pieces == strings else pieces,
    )  # fmt: skip
