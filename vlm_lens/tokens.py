"""Tokens as text, the same way for sentencepiece, byte-level and word-level tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from vlm_lens.errors import PromptError

IMAGE = "<image>"  # marks a picture's place in a text, on every family
_LOST = "\ufffd"  # how decoders write bytes that are no character
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how sentencepiece writes a byte
_MOST_PARTS = 8  # a character has four bytes at the most
_SPACE = "\u2581"  # how sentencepiece writes a space


def tokenizer_of(processor: Any) -> Any:
    """A processor's tokenizer; the processor itself where it is one."""
    return getattr(processor, "tokenizer", processor)


def string_tokens(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    r"""The text of each token, leading spaces kept; empty without a tokenizer.

    A character that is split over several tokens is shown whole at the last of them; those before
    show the bytes that they hold, `\xc3`.
    """
    if tokenizer is None:
        return ()
    special = set(tokenizer.all_special_tokens)  # slow to ask for, so asked once
    ids = [int(i) for i in token_ids]
    known = {i: _string(tokenizer, i, special) for i in set(ids)}
    strings = [known[i] for i in ids]
    return tuple(
        string if piece == string or not piece else piece
        for string, piece in zip(strings, _joined(tokenizer, ids, strings), strict=True)
    )


def text_pieces(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the text, so that joined they are the text.

    A character that is split over several tokens is added by the last of them.
    """
    if tokenizer is None:
        return ()
    special = set(tokenizer.all_special_tokens)
    ids = [int(i) for i in token_ids]
    known = {i: _string(tokenizer, i, special) for i in set(ids)}
    return _joined(tokenizer, ids, [known[i] for i in ids])


def spans_of_text(
    tokenizer: Any, text: str, token_ids: Sequence[int], marks: Sequence[str] = ()
) -> list[tuple[int, int] | None] | None:
    """Which characters of a text each token holds, by the tokenizer's own offsets.

    Args:
        tokenizer: The tokenizer.
        text: What it was given.
        token_ids: Its tokens, others between them, and none for the marks.
        marks: What stands in the text for something else, such as a picture.

    Returns:
        For each token first character and one past the last, `None` for one that was added; `None`
        in all where the tokenizer gives no offsets, or its tokens are not these.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    theirs, offsets = made["input_ids"], made["offset_mapping"]
    found: list[tuple[int, int] | None] = [None] * len(token_ids)
    matched: set[int] = set()
    for block in SequenceMatcher(None, theirs, token_ids, autojunk=False).get_matching_blocks():
        matched.update(range(block.a, block.a + block.size))
        for i in range(block.size):
            found[block.b + i] = tuple(offsets[block.a + i])
    marked = [m.span() for mark in marks if mark for m in re.finditer(re.escape(mark), text)]
    for number in set(range(len(theirs))) - matched:
        start, end = offsets[number]
        if not any(first <= start and end <= last for first, last in marked):
            return None
    return found


def string_token(tokenizer: Any, token_id: int) -> str:
    r"""The text of one token, its leading space kept; bytes of a part of a character as `\xc3`."""
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
    if _LOST in text and (held := _bytes(token)) is not None:
        return held.decode("utf-8", "backslashreplace")
    return text if text else token


def _joined(tokenizer: Any, ids: list[int], strings: list[str]) -> tuple[str, ...]:
    """The strings of tokens, parts of one character joined where it is complete."""
    pieces = list(strings)
    start = 0
    while start < len(ids):
        if not _is_partial(tokenizer, ids[start], strings[start]):
            start += 1
            continue
        held, done = b"", ""
        for end in range(start, min(start + _MOST_PARTS, len(ids))):
            if _is_partial(tokenizer, ids[end], strings[end]):
                held += _bytes(tokenizer.convert_ids_to_tokens(ids[end])) or b""
            else:
                break
            text = held.decode("utf-8", "ignore")
            pieces[end], done = text[len(done) :], text
            if text.encode() == held:
                start = end
                break
        else:
            end = min(start + _MOST_PARTS, len(ids))
        if held.decode("utf-8", "ignore").encode() != held:  # no character, ever: bytes stay bytes
            pieces[start:end] = strings[start:end]
            start = max(end - 1, start)
        start += 1
    return tuple(pieces)


def _is_partial(tokenizer: Any, token_id: int, string: str) -> bool:
    """Whether a token holds bytes that are no whole characters."""
    if "\\x" not in string and not _BYTE.fullmatch(string):
        return False
    held = _bytes(tokenizer.convert_ids_to_tokens(token_id))
    return held is not None and held.decode("utf-8", "ignore").encode() != held


def _bytes(token: str) -> bytes | None:
    """The bytes that a token stands for, in byte-level and in sentencepiece's notation."""
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    if all(c in _BYTE_OF for c in token):
        return bytes(_BYTE_OF[c] for c in token)
    return None


def _byte_table() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_BYTE_OF = _byte_table()


def single_token(tokenizer: Any, text: str) -> int:
    """The id of a text that is one token.

    Raises:
        PromptError: It is several tokens, or there is no tokenizer.
    """
    ids = encode(tokenizer, text)
    if len(ids) != 1:
        parts = [string_token(tokenizer, i) for i in ids]
        first = f"; its first is {parts[0]!r}, id {ids[0]}" if ids else ""
        raise PromptError(f"{text!r} is {len(ids)} tokens of this model, {parts}, not one{first}.")
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
