"""Patchscopes: a state is written into another prompt, and the model says what it makes of it.

```
source run   h = blocks.l, position p
target run   "cat->cat; 135->135; hello->hello; ?"   h written at "?" of blocks.l*, then generate
```

Ghandeharioun et al. 2024, arXiv 2401.06102 (and SelfIE). The write acts in the prefill alone: what
is generated reads the placeholder's keys and values, and nothing is written at new tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.interventions.patch import ActivationPatch
from vlm_lens.layout.positions import Find, Position
from vlm_lens.lenses.base import Lens, LensError, Reading, States, ranked
from vlm_lens.measures.generated import GeneratedTokens
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep.run import sweep

IDENTITY = "cat->cat; 135->135; hello->hello; ?"


@dataclass(frozen=True)
class Patchscope(Lens):
    """Writes each state at the placeholder of a target prompt and generates from there.

    The entry of a place is the text generated; its value is the probability of the first of its
    tokens. Chosen tokens are looked for among the first tokens. The target runs once a point, and
    each state recomputes only what it can change, many states at a time.

    Attributes:
        target: The prompt into which states are written; without pictures.
        placeholder: Which text of it is replaced, at its last token; the last occurrence.
        layer: At which block's output it is written: `None` for that of the state itself, a block,
            or a mapping from blocks of the source to blocks of the target.
        max_new_tokens: How many tokens are generated.
        match_norm: Whether states are brought to the length of what they replace: lengths differ
            from block to block.
    """

    target: str = IDENTITY
    placeholder: str = "?"
    layer: int | Mapping[int, int] | None = field(default=None, hash=False)
    max_new_tokens: int = 5
    match_norm: bool = False

    title: ClassVar[str] = "What a target prompt makes of each state"

    def __post_init__(self):
        super().__post_init__()
        if as_integer(self.max_new_tokens, "max_new_tokens", LensError) < 1:
            raise LensError(f"max_new_tokens is at least 1, not {self.max_new_tokens}.")

    def names(self, vlm: HookedModel) -> list[str]:
        """The points that are read.

        Raises:
            LensError: A block of the layer map that there is not, or a point that it leaves out.
            PositionError: The placeholder does not stand in the target.
        """
        names = super().names(vlm)
        self._where.resolve(vlm.as_prompt(self.target).layout)
        for name in names:
            self._written_at(vlm, name)
        return names

    def read(self, vlm: HookedModel, states: States, tokens: Sequence[int]) -> Reading:
        """What is generated from each state."""
        target = vlm.as_prompt(self.target)
        point = self._written_at(vlm, states.point)
        values = states.values
        if self.match_norm:
            values = values * self._scale(vlm, target, point, values)
        variants = [ActivationPatch(point, self._where, value) for value in values]
        first = sweep(vlm, target, variants, measure="logits", progress=False)
        logits = torch.cat([record["logits"] for record in first.records])  # one position each
        logprobs = logits.float().log_softmax(-1)
        found = sweep(
            vlm, target, variants, measure=GeneratedTokens(self.max_new_tokens), progress=False
        )
        texts = [record["text"] for record in found.records]
        ids = torch.tensor([[_number(text)] for text in texts])
        probs = logprobs.exp()
        return replace(
            ranked(probs, 1, tokens),
            top_ids=ids,
            entropy=-(probs * logprobs).nan_to_num(0.0).sum(-1).cpu(),
            labels={int(i): text for i, text in zip(ids[:, 0], texts, strict=True)},
        )

    @property
    def _where(self) -> Position:
        return Find(self.placeholder, -1)

    def _written_at(self, vlm: HookedModel, point: str) -> str:
        """The point of the target at which states of a source point are written."""
        layer: Any = self.layer
        if layer is None:
            return point
        if isinstance(layer, Mapping):
            source = vlm.architecture.points[point].layer
            if source not in layer:
                raise LensError(f"layer= says of no block where states of {point} are written.")
            layer = layer[source]
        if not 0 <= as_integer(layer, "layer", LensError) < vlm.cfg.n_layers:
            raise LensError(f"The target has blocks 0 to {vlm.cfg.n_layers - 1}, not {layer}.")
        return f"blocks.{layer}.hook_resid_post"

    def _scale(self, vlm: HookedModel, target: Prompt, point: str, values: Tensor) -> Tensor:
        """Length of the state that is replaced, over that of each state."""
        _, cache = vlm.run_with_cache(
            target, names_filter=point, positions=self._where, last_logits=1
        )
        there = cache[point].reshape(-1).float().norm()
        return (there / values.float().norm(dim=-1, keepdim=True)).to(values.dtype)


def _number(text: str) -> int:
    """A number for a text, the same for the same text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


__all__ = ["IDENTITY", "Patchscope"]
