"""The tokens that stand for a word: with a space in front, with a capital letter, in the plural.

A byte-level tokenizer has ` capital` and `capital` as different tokens, and what a residual stream
decodes to is mostly the one with the space.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.parts.scoring import answer_token

__all__ = ["answer_forms", "word_forms"]


def word_forms(vlm: HookedVLM, words: Iterable[str]) -> dict[int, str]:
    """Tokens that are a whole form of one of some words, and their texts.

    Args:
        vlm: The model, for its tokenizer.
        words: The words; of one that is no single token in any form, the first token is taken.

    Returns:
        Token ids, those of the words as given first, each with its text.
    """
    found: dict[int, str] = {}
    for word in words:
        forms = dict.fromkeys((word, word.lower(), word.capitalize(), _plural(word)))
        forms |= dict.fromkeys((_plural(word).capitalize(),))
        whole = [_whole(vlm, space + form) for form, space in product(forms, ("", " "))]
        ids = [token for token in whole if token is not None] or [vlm.to_first_token(word)]
        found |= {token: vlm.to_string([token]) for token in ids}
    return found


def answer_forms(vlm: HookedVLM, answer: str) -> tuple[int, ...]:
    """The first token of an answer as it stands after the delimiter, and after a space.

    The latter counts where it spells at least as much of the answer.
    """
    first = answer_token(vlm, answer)
    spelled = vlm.to_string([first]).strip()
    spaced = [(i, vlm.to_string([i]).strip()) for i in vlm.to_tokens(f" {answer}")]
    spaced = [(i, text) for i, text in spaced if text][:1]
    return tuple(dict.fromkeys((first, *(i for i, text in spaced if text.startswith(spelled)))))


def _whole(vlm: HookedVLM, form: str) -> int | None:
    """The token that is a form, if one is."""
    ids = vlm.to_tokens(form)
    return ids[0] if len(ids) == 1 and vlm.to_string(ids).strip() == form.strip() else None


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{word[:-1]}ies"
    return f"{word}s"
