"""Tokens as text, the same way for sentencepiece, byte-level and word-level tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm_lens.errors import PromptError

IMAGE = "<image>"  # marks a picture's place in a text, on every family
_SPACE = "\u2581"  # how sentencepiece writes a space


def tokenizer_of(processor: Any) -> Any:
    """A processor's tokenizer; the processor itself where it is one."""
    return getattr(processor, "tokenizer", processor)


def string_tokens(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token, leading spaces kept; empty without a tokenizer.

    Joined, they are the text, but for characters that a tokenizer splits over several tokens.
    """
    if tokenizer is None:
        return ()
    special = set(tokenizer.all_special_tokens)  # slow to ask for, so asked once
    known = {i: _string(tokenizer, i, special) for i in {int(i) for i in token_ids}}
    return tuple(known[int(i)] for i in token_ids)


def string_token(tokenizer: Any, token_id: int) -> str:
    """The text of one token, its leading space kept."""
    return _string(tokenizer, token_id, set(tokenizer.all_special_tokens))


def _string(tokenizer: Any, token_id: int, special: set[str]) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:  # beyond the tokenizer's own entries, where vocabularies are padded
        return f"<{token_id}>"
    if token in special:
        return token
    if _SPACE in token:
        return token.replace(_SPACE, " ")
    text = tokenizer.convert_tokens_to_string([token])
    return text if text else token


def single_token(tokenizer: Any, text: str) -> int:
    """The id of a text that is one token.

    Raises:
        PromptError: It is several tokens, or there is no tokenizer.
    """
    ids = encode(tokenizer, text)
    if len(ids) != 1:
        parts = [string_token(tokenizer, i) for i in ids]
        raise PromptError(f"{text!r} is {len(ids)} tokens of this model, {parts}, not one.")
    return ids[0]


def first_token(tokenizer: Any, text: str) -> int:
    """The id of the first token of a text as it would follow a prompt, without special tokens."""
    ids = [i for i in encode(tokenizer, text) if string_token(tokenizer, i).strip()]
    if not ids:
        raise PromptError(f"{text!r} gives no token.")
    return ids[0]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text without special tokens."""
    if tokenizer is None:
        raise PromptError("This HookedVLM has no processor, so it cannot read text: give it one.")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
