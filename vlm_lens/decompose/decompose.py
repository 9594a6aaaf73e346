"""Direct logit attribution: what each part of the residual stream adds to a logit.

```
logit[t] = sum over parts of < direction[t], part > + constants       (see stream/readout.py)
by="source":  a head's part by key,  pattern[q, k] * v[k] @ W_O       (exact at a fixed pattern)
```

It begins with what the first block reads, pictures in their places, so that it is right at image
positions too (the token embedding there is that of a placeholder). Elhage et al. 2021; the scale of
the final norm is held at the value that it has at the position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlm_lens.decompose.scores import Components, Decomposition
from vlm_lens.decompose.sources import by_source
from vlm_lens.decompose.tower import decompose_tower
from vlm_lens.integers import as_integer
from vlm_lens.layout.positions import Images, Last, Position, as_position
from vlm_lens.measures.answers import answer_ids
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.stream.parts import Stream
from vlm_lens.stream.readout import readout
from vlm_lens.stream.readout import rows as rows_of
from vlm_lens.stream.refusal import StreamError

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions, Pictures, Promptable
    from vlm_lens.prompts.prompt import Prompt

BY, PARTS = ("component", "source"), ("language", "vision")


def decompose(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    at: Position | int | Sequence[int] | None = None,
    token: str | int | None = None,
    tokens: Sequence[str | int] | None = None,
    direction: Tensor | None = None,
    layer: int | None = None,
    part: str = "language",
    by: str = "component",
    apply_norm: bool = True,
    interventions: Interventions = (),
) -> Scores:
    """The residual stream at some positions as the sum of its parts.

    Args:
        vlm: The model.
        prompt: One prompt: a Prompt of one row, text, or a processor's output.
        images: Pictures, where `prompt` is text.
        at: The positions; the last by default.
        token: Whose logit is shared out: an id, or a text, whose first token counts
            (`" Paris"` and `"Paris"` are two). Without one the parts are vectors.
        tokens: Several of them; they become an axis.
        direction: In place of a token, what parts are multiplied with, `[d_model]`.
        layer: The block whose output is taken apart; the last by default. Logits are then what
            final norm and output layer make of that stream.
        part: `"language"`, or `"vision"`: the projector's output at the positions `at` (all by
            default), along the direction or the token's row of the output layer, as the sum of
            what the tower's parts bring; see `vlm_lens.decompose.tower`.
        by: `"component"`, or `"source"`: what every head brings from every position.
        apply_norm: Whether parts go through the final norm, its scale held, or are multiplied with
            the output layer as they are.
        interventions: What to change in the run.

    Returns:
        Shares by `component` (`by="source"`: by `layer`, `head` and `position`), by `query` where
        there are several positions, by `token` where several are asked, by `feature` where none is.
        The sum over components is the logit, before a soft cap, or the stream.

    Raises:
        StreamError: This model's stream, norm or output layer cannot be taken apart, or another
            `by`.
        MeasureError: No such token.
        PositionError: A position that the prompt does not have.
    """
    asked = _asked(token, tokens, direction, vlm.cfg.d_model)
    if by not in BY or part not in PARTS:
        wrong, known = (by, BY) if by not in BY else (part, PARTS)
        raise StreamError(f"{wrong!r} is not among {', '.join(map(repr, known))}.")
    if not asked and (by == "source" or part == "vision"):
        what = f"by={by!r}" if by == "source" else f"part={part!r}"
        raise StreamError(f"{what} shares out a number: say which, token=... or direction=....")
    prompt = vlm.as_prompt(prompt, images)
    if len(prompt) != 1:
        raise StreamError(f"One prompt is taken apart at a time; this is a batch of {len(prompt)}.")
    if part == "vision":
        if len(asked) > 1 or layer is not None:
            raise StreamError("part='vision' takes one token or direction, and no layer.")
        along = direction if direction is not None else _rows(vlm, asked)[0][0]
        return decompose_tower(
            vlm, prompt, Images() if at is None else as_position(at), along, by=by,
            interventions=interventions,
        )  # fmt: skip
    at = Last() if at is None else as_position(at)
    queries = [position for _, position in at.resolve(prompt.layout, "text")]
    question = _Question(vlm, prompt, at, queries, asked, tokens is not None)
    if direction is not None:
        rows, bias = direction[None], torch.zeros(1)
    elif asked:
        rows, bias = _rows(vlm, asked)
    n_layers = _n_layers(vlm, layer)
    stream = Stream(vlm.hf_model, vlm.architecture)
    cache = question.read(stream.names(n_layers), interventions)
    if not asked:
        found = Components()
        for one in stream.parts(cache, n_layers):
            found.add(one, one.values[:, 0].transpose(0, 1))
        return question.vectors(found, stream.why_whole, n_layers)
    end = cache[stream.name(n_layers - 1, "hook_resid_post")]
    read = readout(vlm.hf_model, vlm.architecture, end, rows, bias, apply_norm=apply_norm)
    about = question.about(n_layers, apply_norm)
    if by == "source":
        values, layers, why = by_source(vlm, prompt, at, stream, cache, read, interventions)
        axes = {"layer": layers, "head": range(vlm.cfg.n_heads),
                "position": range(len(prompt.layout))}  # fmt: skip
        return question.scores(values, axes, about | ({"left out": why} if why else {}))
    found = Components()
    for one in stream.parts(cache, n_layers):
        found.add(one, read.of(one.values)[:, :, 0].permute(2, 0, 1))
    for name, constant in (("final norm bias", read.norm_bias), ("unembed bias", read.head_bias)):
        if constant.any():
            found.add_constant(name, constant.expand(len(queries), -1)[..., None])
    about |= _whole(stream.why_whole)
    made = question.scores(found.values(), {"component": found.names}, about)
    return found.beside(made)


@dataclass(frozen=True)
class _Question:
    """What is asked of which prompt, and how answers to it are labelled."""

    vlm: HookedModel
    prompt: Prompt
    at: Position
    queries: Sequence[int]
    asked: Sequence[str | int]
    several: bool

    def read(self, names: Sequence[str], interventions: Interventions) -> Mapping[str, Tensor]:
        """These points at the queries."""
        wanted = set(names)
        _, cache = self.vlm.run_with_cache(
            self.prompt, names_filter=lambda name: name in wanted, positions=self.at,
            interventions=interventions, last_logits=1,
        )  # fmt: skip
        return cache

    def about(self, n_layers: int, apply_norm: bool) -> dict[str, Any]:
        """How the scores were made."""
        decoder, about = self.vlm.architecture.decoder, {"model": self.vlm.name}
        about["of"] = f"blocks.{n_layers - 1}.hook_resid_post"
        if decoder.logit_softcap is not None:
            about["before"] = f"the soft cap {decoder.logit_softcap:g} of the logits"
        if not apply_norm:
            about["norm"] = "not applied"
        return about

    def scores(self, values: Tensor, axes: Mapping[str, Any], about: dict[str, Any]) -> Scores:
        """From `[query, token, ...]`."""
        mine: dict[str, Any] = {}
        array: np.ndarray = values.cpu().numpy()
        if self.several:
            mine["token"] = list(self.asked)
        else:
            array, about = array[:, 0], about | {"token": self.asked[0]}
        return self._scores(array, {**mine, **axes}, about, "share of the logit")

    def vectors(self, found: Components, why_whole: Mapping[int, str], n_layers: int) -> Scores:
        """From components `[query, component, d_model]`."""
        array = torch.cat(found.shares, 1).cpu().numpy()
        axes = {"component": found.names, "feature": range(array.shape[-1])}
        about = {"model": self.vlm.name, "of": f"blocks.{n_layers - 1}.hook_resid_post"}
        about |= _whole(why_whole)
        return found.beside(self._scores(array, axes, about, "part of the stream"))

    def _scores(self, array: np.ndarray, axes: dict, about: dict, name: str) -> Scores:
        if len(self.queries) == 1:
            array, about = array[0], about | {"query": self.queries[0]}
        else:
            axes = {"query": list(self.queries), **axes}
        pictures = self.prompt.images[0] if self.prompt.images else ()
        return scores(
            array, axes, name=name, layout=self.prompt.layout, pictures=pictures, about=about
        )


def _asked(
    token: str | int | None,
    tokens: Sequence[str | int] | None,
    direction: Tensor | None,
    d_model: int,
) -> list[str | int]:
    """What is asked of the stream: tokens, or one direction."""
    if sum(one is not None for one in (token, tokens, direction)) > 1:
        raise StreamError("Give one of token=, tokens= and direction=.")
    if isinstance(tokens, str):
        raise StreamError(f"tokens= is a list; for one token write token={tokens!r}.")
    if direction is not None:
        if tuple(direction.shape) != (d_model,):
            raise StreamError(f"direction= is [{d_model}] here, not {list(direction.shape)}.")
        return ["direction"]
    return [token] if token is not None else list(tokens or ())


def _rows(vlm: HookedModel, asked: Sequence[str | int]) -> tuple[Tensor, Tensor]:
    return rows_of(vlm.hf_model, vlm.architecture, [answer_ids(vlm, one)[0] for one in asked])


def _whole(why: Mapping[int, str]) -> dict[str, dict[str, str]]:
    return {"taken whole": {f"block {n}": reason for n, reason in why.items()}} if why else {}


def _n_layers(vlm: HookedModel, layer: int | None) -> int:
    """How many blocks are taken apart."""
    n = vlm.cfg.n_layers
    number = -1 if layer is None else as_integer(layer, "layer", StreamError)
    if not -n <= number < n:
        raise StreamError(f"layer={layer}: blocks are 0 to {n - 1}.")
    return number % n + 1


__all__ = ["Decomposition", "decompose"]
