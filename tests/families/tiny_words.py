"""A tokenizer of letters with the special tokens that a processor needs."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def tokenizer(special: Sequence[str] = (), **options) -> PreTrainedTokenizerFast:
    """Bytes as tokens; `<unk>` 0, `<s>` 1 (written first), `</s>` 2, `<pad>` 3, then `special`."""
    own = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if ord(c) < 0x180]
    words = [*own, *special, *alphabet]
    made = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", fuse_unk=False)
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([*own, *special])
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", **options,
    )  # fmt: skip
