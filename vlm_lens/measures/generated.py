"""Tokens that a model generates after the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_lens.engine.baseline import Baseline
from vlm_lens.engine.continuing import Continuation, continue_greedily, end_tokens, pad_token
from vlm_lens.engine.replay import Replayed
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions.base import Target, compose
from vlm_lens.measures.base import BoundMeasure, Measure, Record
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.serial import savable


@savable
@dataclass(frozen=True)
class GeneratedTokens(Measure):
    """Tokens generated greedily.

    Attributes:
        max_new_tokens: How many, at the most.
    """

    max_new_tokens: int = 1

    def bind(self, vlm: HookedModel, prompt: Prompt) -> BoundMeasure:
        """This measure on a model and a prompt.

        Raises:
            PromptError: The model cannot number so many positions.
        """
        vlm.prompts.check_length(prompt.inputs, self.max_new_tokens - 1)
        return _BoundGeneration(self, vlm, prompt)


@dataclass
class _BoundGeneration(BoundMeasure):
    measure: GeneratedTokens
    vlm: HookedModel
    prompt: Prompt

    columns = ("tokens", "text")

    def __post_init__(self):
        self.goes_on = self.measure.max_new_tokens > 1

    def of_plain(self, baseline: Baseline | None) -> list[Record]:
        return []

    def of_replay(self, baseline: Baseline, replayed: Replayed) -> list[list[Record]]:
        model = self.vlm.hf_model
        mask = self.prompt.inputs.get("attention_mask")
        tokens = continue_greedily(
            Continuation(model, baseline, replayed, mask),
            self.measure.max_new_tokens,
            ends=end_tokens(model),
            pad=pad_token(model, self.vlm.tokenizer),
        )
        return [self._records(mine) for mine in tokens.unflatten(0, replayed.logits.shape[:2])]

    def of_run(self, interventions: Any) -> list[Record]:
        options = logits_of_whole_prompt(self.vlm, self.prompt, interventions)
        generation = self.vlm.generate(
            self.prompt, max_new_tokens=self.measure.max_new_tokens, interventions=interventions,
            **options,
        )  # fmt: skip
        return self._records(generation.tokens)

    def _records(self, tokens: Tensor) -> list[Record]:
        tokenizer = self.vlm.tokenizer
        found = []
        for row in tokens:
            ids = row.tolist()
            text = tokenizer.decode(ids, skip_special_tokens=True) if tokenizer else ""
            found.append({"tokens": ids, "text": text})
        return found


def logits_of_whole_prompt(vlm: HookedModel, prompt: Prompt, interventions: Any) -> dict[str, int]:
    """The option that has generate compute logits at every position, where those are changed.

    Otherwise it computes the last position's only, and a change at another would not act.
    """
    target = Target(vlm.architecture.points, prompt.layouts, lambda: vlm.facts)
    changed = any(op.point == "hook_logits" for op in compose(interventions).lower(target))
    return {"logits_to_keep": 0} if changed else {}
