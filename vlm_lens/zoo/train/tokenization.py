"""A real fast tokenizer over the words of the tables.

Word level where a word is known, characters (and then bytes, as in Llama) where it is not, so
every text can be typed and every text round-trips exactly.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["build_tokenizer"]

_PIECE = r"\n\n|\n|:|=| ?[^\s:=]+| "
_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def build_tokenizer(
    texts: Iterable[str], special: Sequence[str] = ("<image>",)
) -> PreTrainedTokenizerFast:
    r"""Build the tokenizer.

    A word after a space is another token than the same word at the start, as in Llama; `:`,
    `\n` and `\n\n` are always tokens of their own.

    Args:
        texts: Every string whose words are to be single tokens.
        special: Special tokens beyond `<unk>`, `<s>`, `</s>` and `<pad>`.

    Returns:
        A tokenizer that begins with `<s>` and pads on the left.
    """
    vocab = {token: i for i, token in enumerate([*_SPECIAL, *special])}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    texts = ["Q:A=\n\n", "\n", *texts]
    pieces = [piece for text in texts for piece in re.findall(_PIECE, text)]
    letters = sorted(set(string.printable[:95]) | set("".join(texts)))
    for piece in [*letters, *pieces]:
        vocab.setdefault(piece, len(vocab))
    model = models.BPE(
        vocab=vocab, merges=[], ignore_merges=True, byte_fallback=True, unk_token="<unk>"
    )
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), "isolated")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    core.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in [*_SPECIAL, *special]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(special),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
