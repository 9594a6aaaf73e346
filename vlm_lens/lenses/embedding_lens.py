"""The embedding lens: which token's input embedding a state points at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.lenses.base import Lens, Reading, States, in_blocks, ranked

_BLOCK = 1 << 14  # rows of the embedding in memory at a time, beside their cosines


@dataclass(frozen=True)
class EmbeddingLens(Lens):
    """Compares each state with the input embedding of every token, by cosine.

    It says what a state is still, or again, the embedding of: the token that was read rather than
    the one that comes next.
    """

    measure: ClassVar[str] = "cosine similarity"
    title: ClassVar[str] = "Which token's embedding each state is nearest to"

    def read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        """The tokens with the nearest embeddings."""

        def read(part: States) -> Reading:
            return ranked(cosines(vlm, part.values), self.k, tokens)

        return in_blocks(read, states, vlm.cfg.d_vocab)


def cosines(
    vlm: HookedModel, states: Float[Tensor, "positions d_model"]
) -> Float[Tensor, "positions d_vocab"]:
    """Cosine of states with every token's input embedding."""
    embed = vlm.hf_model.get_input_embeddings()
    mine = unit(states)
    found = []
    for start in range(0, vlm.cfg.d_vocab, _BLOCK):
        ids = torch.arange(start, min(start + _BLOCK, vlm.cfg.d_vocab), device=vlm.device)
        found.append(mine @ unit(embed(ids)).to(mine.device).T)
    return torch.cat(found, dim=-1)


def unit(vectors: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Vectors of length 1, in float32."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


__all__ = ["EmbeddingLens", "cosines", "unit"]
