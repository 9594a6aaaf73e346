"""A pair from one prompt: the same with words replaced."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.answers import Answer
from vlm_lens.pairs.pair import Pair, PairError
from vlm_lens.prompts.maker import Pictures, Promptable
from vlm_lens.prompts.template import RawPrompt
from vlm_lens.tokens import IMAGE


def replaced_pair(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    replace: Mapping[str, str],
    answer: Answer,
    other: Answer,
    same_length: bool = True,
) -> Pair:
    """A prompt, and the same with some words replaced by others.

    Symmetric token replacement (NOTICE, arXiv 2406.16320): words of as many tokens, so that every
    position has its counterpart and nothing is off the data.

    Args:
        vlm: The model.
        prompt: One prompt whose text is known.
        images: Its pictures, where `prompt` is a text.
        replace: Words of the text -> what stands there instead, everywhere.
        answer: What is right after the text as it is.
        other: What is right after the replaced one.
        same_length: Whether other numbers of tokens are refused; without, replaced words
            correspond at their last token.

    Raises:
        PairError: A word that the text does not have, or one of another number of tokens.
    """
    clean = vlm.as_prompt(prompt, images)
    if len(clean) != 1 or not clean.texts:
        raise PairError("Words are replaced in one prompt whose text is known: give a text.")
    text = clean.texts[0]
    for word, instead in replace.items():
        if not word or word not in text:
            raise PairError(f"{word!r} does not occur in this prompt: {text!r:.200}.")
        if IMAGE in word or IMAGE in instead:
            raise PairError(f"{IMAGE} is a picture: give the prompt another one, masked_pair(...).")
        text = text.replace(word, instead)
    if text == clean.texts[0]:
        raise PairError("replace= changes nothing: name words and what stands there instead.")
    corrupt = vlm.as_prompt(RawPrompt(text, clean.images[0] if clean.images else ()))
    differs = ", ".join(f"{word!r} -> {instead!r}" for word, instead in replace.items())
    pair = Pair(clean, corrupt, answer, other, differs=differs)
    if same_length and not pair.positions.is_whole:
        counts = [len(layout) for layout in (clean.layout, corrupt.layout)]
        raise PairError(
            f"With {differs} the prompt has {counts[1]} positions instead of {counts[0]}: take "
            "words of as many tokens, or same_length=False, with which the replaced words "
            f"correspond at their last token. {pair.positions!r}"
        )
    return pair.check(vlm)
