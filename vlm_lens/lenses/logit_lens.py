"""The logit lens: what the residual stream at each layer would say, were it the last one.

nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import PointError, PositionError, VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer, is_integer
from vlm_lens.interventions.base import freeze_points
from vlm_lens.layout.layout import Layout
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.lenses.result import LensResult, LensRow
from vlm_lens.tokens import string_token


class LensError(VLMLensError):
    """A lens that does not reproduce the model's own logits at the last layer."""


@dataclass(frozen=True)
class LogitLens:
    """Decodes the residual stream at every layer into the vocabulary.

    At each layer the final norm is computed anew from that layer's own residual stream, and then
    the model's output layer is applied. Before anything is returned, the last layer's decoding is
    compared with the model's logits.

    Attributes:
        points: Which points are decoded; they must be as wide as the residual stream.
        at: Which positions; all by default.
        k: How many of the most likely tokens are kept.
        tokens: Tokens (ids, or texts of one token) whose probability and rank are kept too.
        embedding: Whether the language model's input comes first, as the layer `"embed"`.
    """

    points: str | tuple[str, ...] = "blocks.*.hook_resid_post"
    at: Position | int | Sequence[int] | None = None
    k: int = 10
    tokens: tuple[str | int, ...] = ()
    embedding: bool = False

    def __post_init__(self):
        points = freeze_points(self.points)
        object.__setattr__(self, "points", points if len(points) > 1 else points[0])
        object.__setattr__(self, "at", All() if self.at is None else as_position(self.at))
        if as_integer(self.k, "k", LensError) < 1:
            raise LensError(f"k, how many tokens are shown, must be at least 1, not {self.k}.")
        one = isinstance(self.tokens, str) or is_integer(self.tokens)
        tokens = (self.tokens,) if one else tuple(self.tokens)
        object.__setattr__(self, "tokens", tokens)

    def transform_hidden(self, hidden: Tensor, point: str) -> Tensor:
        """What is done to a hidden state before the final norm; nothing, in the logit lens."""
        return hidden

    @torch.no_grad()
    def run(
        self, vlm: HookedModel, prompt: Any, images: Any = None, *, interventions: Any = ()
    ) -> LensResult:
        """Decodes a prompt, or each row of a batch.

        Args:
            vlm: A HookedVLM.
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            interventions: What to change in the run that is decoded.

        Raises:
            LensError: The last layer does not give the model's logits, so no layer's decoding
                could be trusted.
            PointError: A point that is not as wide as the residual stream.
        """
        prompt = vlm.as_prompt(prompt, images)
        table = vlm.architecture.points
        names = table.match(freeze_points(self.points))
        if self.embedding:
            names = [*table.match(["hook_merged"]), *names]
        for name in names:
            if table[name].space != "text" or table[name].sizes[2:] != (vlm.cfg.d_model,):
                raise PointError(
                    f"{name} has shape {table[name].shape}; the lens decodes the language model's "
                    f"residual stream, [batch, pos, {vlm.cfg.d_model}]."
                )
        token_ids = [vlm.to_token_id(t) for t in self.tokens]
        where = [[p for _, p in self.at.resolve(layout)] for layout in prompt.layouts]
        if not all(where):
            raise PositionError(f"{self.at} holds no position of this prompt to decode.")
        last = table.match(["blocks.*.hook_resid_post"])[-1]
        logits, cache = vlm.run_with_cache(
            prompt, names_filter=[*names, last], interventions=interventions
        )
        rows = []
        for row, positions in enumerate(where):
            self._check(vlm, cache[last][row, positions], logits[row, positions])
            rows.append(
                self._decode(vlm, prompt.layouts[row], row, positions, names, cache, token_ids)
            )
        shown = {*token_ids, *(int(i) for r in rows for i in r.top_ids.unique())}
        labels = {i: string_token(vlm.tokenizer, i) if vlm.tokenizer else str(i) for i in shown}
        pictures = prompt.images or ((),) * len(prompt)
        return LensResult(
            tuple(names), tuple(rows), tuple(token_ids), labels, tuple(pictures), vlm.name
        )

    def _check(self, vlm: HookedModel, residual: Tensor, logits: Tensor) -> None:
        decoded = _logits(vlm, residual)
        error = float((decoded.float() - logits.float()).abs().max())
        scale = float(logits.float().abs().max())
        allowed = 1e-3 if logits.dtype == torch.float32 else 5e-2
        if not error <= allowed * scale:
            raise LensError(
                f"The lens does not reproduce the model's logits at the last layer: it is off by "
                f"{error:.3g} where logits reach {scale:.3g}. Its decodings of earlier layers "
                "would mean nothing. An intervention after the last block, or an output layer "
                "that the family does not describe, does this."
            )

    def _decode(
        self,
        vlm: HookedModel,
        layout: Layout,
        row: int,
        positions: list[int],
        names: list[str],
        cache: Any,
        token_ids: list[int],
    ) -> LensRow:
        top_ids, top_probs, chosen, ranks = [], [], [], []
        for name in names:
            hidden = self.transform_hidden(cache[name][row, positions], name)
            probs = _logits(vlm, hidden).float().softmax(-1)
            top = probs.topk(min(self.k, probs.shape[-1]), dim=-1)
            top_ids.append(top.indices.cpu())
            top_probs.append(top.values.cpu())
            mine = probs[:, token_ids]
            above = torch.zeros_like(mine, dtype=torch.long)
            for i in range(len(token_ids)):
                above[:, i] = (probs > mine[:, [i]]).sum(-1)
            chosen.append(mine.cpu())
            ranks.append(above.cpu())
        return LensRow(
            layout,
            tuple(positions),
            torch.stack(top_ids),
            torch.stack(top_probs),
            torch.stack(chosen),
            torch.stack(ranks),
        )


def _logits(vlm: HookedModel, hidden: Tensor) -> Tensor:
    return vlm.unembed(vlm.ln_final(hidden))
