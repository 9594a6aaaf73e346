"""Lenses that decode into the vocabulary, and the simplest of them, the logit lens.

```
logits_l = W_U norm(T_l h_l)          T_l = 1 in the logit lens
```

nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.lenses.base import Lens, LensError, Reading, States, in_blocks, ranked


@dataclass(frozen=True)
class VocabularyLens(Lens):
    """A lens that maps states into the last layer's space and lets the model's own head decode.

    At each layer the final norm is computed anew from what `transform` gives, and then the model's
    output layer is applied. Before anything is returned, the last layer's states as they are must
    give the model's logits.
    """

    def transform(
        self, states: Float[Tensor, "positions d_model"], point: str, kinds: Sequence[str]
    ) -> Float[Tensor, "positions d_model"]:
        """What is done to states before the final norm; nothing, in the logit lens.

        Args:
            states: The states.
            point: Where they were read.
            kinds: What stands at each position.
        """
        return states

    def read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        """The most likely tokens."""
        return in_blocks(lambda part: self._read(vlm, part, tokens), states, vlm.cfg.d_vocab)

    def _read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        logits = decoded(vlm, self.transform(states.values, states.point, states.kinds)).float()
        logprobs = logits.log_softmax(-1)
        probs = logprobs.exp()
        entropy = -(probs * logprobs).nan_to_num(0.0).sum(-1)
        return replace(
            ranked(probs, self.k, tokens),
            entropy=entropy.cpu(),
            kl=kl_to(logprobs, states.logits.float().log_softmax(-1)).cpu(),
        )

    def check_last(self, vlm: HookedModel, states: States) -> None:
        """Compares the decoding of the last states with the model's logits.

        Raises:
            LensError: They differ.
        """
        logits = states.logits
        error = float((decoded(vlm, states.values).float() - logits.float()).abs().max())
        scale = float(logits.float().abs().max())
        allowed = 1e-3 if logits.dtype.itemsize >= 4 else 5e-2
        if not error <= allowed * scale:
            raise LensError(
                f"The lens does not reproduce the model's logits at the last layer: it is off by "
                f"{error:.3g} where logits reach {scale:.3g}. Its decodings of earlier layers "
                "would mean nothing. An intervention after the last block, or an output layer "
                "that the family does not describe, does this."
            )


@dataclass(frozen=True)
class LogitLens(VocabularyLens):
    """What the residual stream at each layer would say, were it the last one.

    Attributes:
        embedding: Whether the language model's input comes first, as the layer `"embed"`.
    """

    embedding: bool = False

    def names(self, vlm: HookedModel) -> list[str]:
        """The points that are decoded, the language model's input first if asked.

        Raises:
            PointError: One is not as wide as the residual stream.
        """
        names = super().names(vlm)
        return (
            [*vlm.architecture.points.match(["hook_merged"]), *names] if self.embedding else names
        )


def decoded(
    vlm: HookedModel, states: Float[Tensor, "*places d_model"]
) -> Float[Tensor, "*places d_vocab"]:
    """Logits that the model's own final norm and output layer give for states."""
    return vlm.unembed(vlm.ln_final(states))


def kl_to(
    lens: Float[Tensor, "*places d_vocab"], model: Float[Tensor, "*places d_vocab"]
) -> Float[Tensor, "*places"]:
    """KL(model || lens) of two log-probabilities, in nats; a token the model rules out adds 0."""
    return (model.exp() * (model - lens)).nan_to_num(0.0, posinf=float("inf")).sum(-1)


__all__ = ["LogitLens", "VocabularyLens", "decoded", "kl_to"]
