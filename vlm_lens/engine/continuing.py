"""Tokens after prompts: replayed ones, each row from its own keys and values, or read whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.replay import Replayed


class Continuation:
    """The prompts of a replay, going on token by token.

    Args:
        model: The Hugging Face model.
        baseline: The recorded run.
        replayed: What was replayed, with its cache.
        mask: The prompt's attention mask, `[rows, pos]`, if it has one.

    Attributes:
        logits: Those of the next token, `[variants * rows, d_vocab]`.
    """

    def __init__(
        self, model: nn.Module, baseline: Baseline, replayed: Replayed, mask: Tensor | None
    ):
        self._model, self._cache = model, replayed.cache
        n_variants, n_rows = replayed.logits.shape[:2]
        self.logits = replayed.logits[:, :, -1].flatten(0, 1)
        self._mask = None if mask is None else mask.repeat(n_variants, 1)
        following = baseline.next_positions
        if following is None:
            following = torch.full((n_rows,), baseline.length)
        self._position = following.to(self.logits.device).repeat(n_variants)

    @torch.no_grad()
    def feed(self, tokens: Tensor) -> None:
        """Reads one more token of each row, `[variants * rows]`."""
        options: dict[str, Any] = {}
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
            options["attention_mask"] = self._mask
        out = self._model(
            input_ids=tokens[:, None], past_key_values=self._cache, use_cache=True,
            position_ids=self._position[:, None], return_dict=True, **options,
        )  # fmt: skip
        self._position = self._position + 1
        self.logits = out.logits[:, -1]


def continue_greedily(
    continuation: Continuation, n_new: int, *, ends: Sequence[int], pad: int
) -> Tensor:
    """Greedy tokens of each row, `[variants * rows, n_new]`, or fewer if all rows end.

    Args:
        continuation: Where the prompts stand.
        n_new: How many tokens, at the most.
        ends: The tokens that end a text.
        pad: What follows them.
    """
    new = [continuation.logits.argmax(-1)]
    for _ in range(1, n_new):
        if ends and torch.isin(torch.stack(new), torch.tensor(ends).to(new[0])).any(0).all():
            break
        continuation.feed(new[-1])
        new.append(continuation.logits.argmax(-1))
    tokens = torch.stack(new, -1)
    if not ends:
        return tokens
    ended = torch.isin(tokens, torch.tensor(ends).to(tokens)).long().cumsum(-1)
    after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], -1) > 0
    return tokens.masked_fill(after, pad)


class _NoOutput(dict):
    """The output of no run: it holds nothing."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def followed_by(
    model: Any, ids: str, inputs: Mapping[str, Tensor], tokens: Sequence[int]
) -> dict[str, Tensor]:
    """A prompt's tensors with tokens after it, which the model reads as if it had written them.

    What stands beside each token (its mask, its type) is what the model's own generation puts
    there: PaliGemma reads a prompt both ways, and what follows it one way.

    Args:
        model: The Hugging Face model.
        ids: Which of the tensors holds the tokens; of an encoder-decoder the decoder's.
        inputs: The tensors of a prompt of one row.
        tokens: The tokens.
    """
    length, of_decoder = inputs[ids].shape[1], ids.startswith("decoder_")
    new = torch.tensor([list(tokens)]).to(inputs[ids])
    grown = {**inputs, ids: torch.cat([inputs[ids], new], 1)}
    beside = {
        name: value
        for name, value in inputs.items()
        if name != ids and value.dim() >= 2 and value.shape[:2] == (1, length)
        and name.startswith("decoder_") == of_decoder
    }  # fmt: skip
    theirs: dict[str, Any] = {**beside, "use_cache": False}
    for _ in tokens:
        theirs = model._update_model_kwargs_for_generation(
            outputs=_NoOutput(), model_kwargs=theirs, is_encoder_decoder=of_decoder,
            num_new_tokens=1,
        )  # fmt: skip
    for name, value in beside.items():
        more = torch.cat([value, value[:, -1:].repeat_interleave(len(tokens), 1)], 1)
        same = theirs[name].shape == more.shape  # what it leaves as it is goes on as it ended
        grown[name] = theirs[name] if same else more
    return grown


def end_tokens(model: Any) -> list[int]:
    """The tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def pad_token(model: Any, tokenizer: Any) -> int:
    """What generation fills rows with that ended before others."""
    pad = model.generation_config.pad_token_id
    return pad if pad is not None else getattr(tokenizer, "pad_token_id", None) or 0
