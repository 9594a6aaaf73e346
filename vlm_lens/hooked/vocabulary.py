"""Between residual stream, tokens and text: a model's own norm, output layer and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families import Architecture
from vlm_lens.integers import as_integer
from vlm_lens.keywords import Answering
from vlm_lens.points.placement import called
from vlm_lens.tokens import encode, first_token, single_token, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Vocabulary(Answering):
    """The part of a HookedVLM that deals with tokens."""

    hf_model: PreTrainedModel
    processor: Any
    architecture: Architecture

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, `None` without a processor."""
        return tokenizer_of(self.processor)

    def unembed(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Logits of normed residual-stream vectors: the model's own output layer.

        Differentiable in `x`: gradients are recorded where it requires them.
        """
        with _recording_for(x):
            return self.architecture.logits(self.hf_model, x)

    def ln_final(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The language model's final norm, its statistics computed anew from `x`.

        Differentiable in `x`: gradients are recorded where it requires them.
        """
        with _recording_for(x):
            return called(self.architecture.final_norm(self.hf_model), x)

    def to_tokens(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        return encode(self.tokenizer, text)

    def to_string(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of token ids, special tokens included.

        Raises:
            PromptError: There is no tokenizer.
        """
        if self.tokenizer is None:
            raise PromptError("This HookedVLM has no processor, so it knows no text: give it one.")
        return self.tokenizer.decode(torch.as_tensor(tokens).flatten().tolist())

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            PromptError: It is several tokens.
        """
        return single_token(self.tokenizer, text)

    def to_token_id(self, token: str | SupportsIndex) -> int:
        """The id of a token given by its id or its text.

        Raises:
            PromptError: A text of several tokens, or an id that this model does not have.
        """
        if isinstance(token, str):
            return self.to_single_token(token)
        number, most = as_integer(token, "A token", PromptError), self.architecture.cfg.d_vocab
        if not 0 <= number < most:
            raise PromptError(f"There is no token {number}: ids of this model are 0 to {most - 1}.")
        return number

    def to_first_token(self, text: str) -> int:
        """The id of the first token of a text."""
        return first_token(self.tokenizer, text)


def _recording_for(x: Tensor) -> torch.set_grad_enabled:
    """Records gradients for `x` alone: the model's weights are no reason to."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad)
