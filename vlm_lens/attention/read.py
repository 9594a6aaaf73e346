"""Attention of some positions, by block, head and key, as scores.

```
pattern[block, head, query, key]     a row sums to 1 over the keys that the query may see
  weigh="value"    pattern * |v_key|                 (how much is moved, not how it is divided)
  weigh="output"   pattern * |after(v_key W_O^head)| (what reaches the stream; Kobayashi et al.
                                                      2020, arXiv 2004.10102)
  after            nothing; a scale (Granite); a gate (cross-attention); or a norm, its scale held
                   at the query (Gemma 3)
```

Only the rows of the queries asked for are computed, beside the attention that the model uses, so
that a long prompt costs little more than its plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_lens.attention.parts import AttentionError, Part, part_of
from vlm_lens.attention.sinks import SinkWatch
from vlm_lens.layout.positions import Last, Position, as_position
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.stream import StreamError
from vlm_lens.stream.parts import Heads, Stream
from vlm_lens.stream.weights import HeadWeights

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions, Pictures, Promptable

WEIGHTS = ("pattern", "value", "output")
_REACHING = ("attn.hook_z", "hook_attn_out")
_NAMES = {"pattern": "attention", "value": "attention x |v|", "output": "attention x |vW_O|"}


def attention(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    at: Position | int | Sequence[int] | None = None,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    part: str = "language",
    weigh: str = "pattern",
    interventions: Interventions = (),
) -> Scores:
    """Where the positions `at` look.

    Args:
        vlm: The model.
        prompt: One prompt: a Prompt of one row, text, or a processor's output.
        images: Pictures, where `prompt` is text.
        at: The queries; the last position by default. In the tower they have to be named, for
            example `Patches(0, box=(40, 10, 90, 60))`.
        layers: Blocks, 0-based; all by default.
        heads: Heads, 0-based; all by default.
        part: `"language"` (the text's own attention, in which pictures stand as tokens),
            `"vision"` (the tower), `"encoder"` (of an encoder-decoder) or `"cross"` (from text to
            pictures, or from a decoder to what its encoder gives).
        weigh: `"pattern"` (shares, which sum to 1 over keys), `"value"` (times the norm of what
            is read) or `"output"` (times the norm of what that adds to the stream).
        interventions: What to change in the run.

    Returns:
        Scores by `layer`, `head`, `query` (left out where there is one) and `position` (the
        keys). Attention sinks are marked as `"sinks"`; `without_sinks()` leaves them out.

    Raises:
        AttentionError: A part, block or head that the model does not have, a batch of several
            rows (see `attention_by_row`), or another `weigh`.
        PositionError: A position that the prompt does not have.
    """
    prompt = vlm.as_prompt(prompt, images)
    if len(prompt) != 1:
        raise AttentionError(
            f"This is a batch of {len(prompt)} rows: attention_by_row gives the scores of each."
        )
    return attention_by_row(
        vlm, prompt, at=at, layers=layers, heads=heads, part=part, weigh=weigh,
        interventions=interventions,
    )[0]  # fmt: skip


def attention_by_row(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    at: Position | int | Sequence[int] | None = None,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    part: str = "language",
    weigh: str = "pattern",
    interventions: Interventions = (),
) -> list[Scores]:
    """As `attention`, of each row of a batch, by one run.

    Args:
        vlm: The model.
        prompt: A Prompt, texts, or a processor's output.
        images: Pictures, where `prompt` is text.
        at: The queries, as many in each row; the last position by default.
        layers: Blocks, 0-based; all by default.
        heads: Heads, 0-based; all by default.
        part: `"language"`, `"vision"`, `"encoder"` or `"cross"`.
        weigh: `"pattern"`, `"value"` or `"output"`.
        interventions: What to change in the run.

    Returns:
        The scores of each row, by the positions of that row; those of padding are left out.

    Raises:
        AttentionError: A part, block or head that the model does not have, or another `weigh`.
        PositionError: A position that a prompt does not have.
    """
    if weigh not in WEIGHTS:
        raise AttentionError(f"weigh is one of {', '.join(WEIGHTS)}, not {weigh!r}.")
    prompt = vlm.as_prompt(prompt, images)
    which = part_of(vlm, part)
    if at is None and which.queries == "vision":
        raise AttentionError(
            "Say whose attention in the tower is meant: at=Patches(0, box=...), at=Images(0)."
        )
    at = Last() if at is None else as_position(at)
    chosen, picked = which.chosen(layers), which.chosen_heads(heads)
    queries = [at.resolve(layout, which.queries) for layout in prompt.layouts]
    if any(len({row for row, _ in mine}) > 1 for mine in queries):
        raise AttentionError(
            f"{at} holds positions of several sequences of the tower; read one picture at a time."
        )
    names = [which.point(n, "attn.hook_pattern") for n in chosen]
    watch, norms = SinkWatch(which), _Norms(vlm, which, chosen if weigh != "pattern" else (), weigh)
    with vlm.hooks([*watch.hooks(vlm.architecture.points), *norms.hooks()]):
        _, cache = vlm.run_with_cache(
            prompt, names_filter=[*names, *norms.read], positions=at, device="cpu",
            interventions=interventions, last_logits=1,
        )  # fmt: skip
    about: dict[str, Any] = {"model": vlm.name, "part": part, "weigh": weigh, "queries": str(at)}
    found = []
    for i, (layout, mine) in enumerate(zip(prompt.layouts, queries, strict=True)):
        row = mine[0][0]
        patterns = [cache[name][i].float()[picked] for name in names]  # [head, query, key]
        if weigh != "pattern":
            patterns = [
                _weighed(p, norms.found[n][row][picked]) / norms.scale(n, cache, i)
                for p, n in zip(patterns, chosen, strict=True)
            ]
        keys = which.keys_of(layout, row, patterns[0].shape[-1])
        values = torch.stack([p[..., [k for _, k in keys]] for p in patterns])
        axes: dict[str, Any] = {"layer": chosen, "head": picked, "query": [p for _, p in mine]}
        if len(mine) == 1:
            values = values[:, :, 0]
            del axes["query"]
        sinks = watch.found(layout, row)
        found.append(
            scores(
                values.numpy(),
                {**axes, "position": [p for _, p in keys]},
                None if which.keys == "text" else [r for r, _ in keys],
                name=_NAMES[weigh],
                layout=layout,
                pictures=prompt.images[i] if prompt.images else (),
                space=which.keys,
                marked={"sinks": sinks.positions} if which.queries == which.keys else {},
                about=about | ({"query": mine[0][1]} if len(mine) == 1 else {}),
            )
        )
    return found


class _Norms:
    """Looks at the values of some blocks, and keeps by head the norm of what each key moves."""

    def __init__(self, vlm: HookedModel, part: Part, layers: Sequence[int], weigh: str):
        self._part, self._layers, self._device = part, layers, vlm.device
        self._w_o = {n: output_weight(vlm, part, n) for n in layers if weigh == "output"}
        self._stream = Stream(vlm.hf_model, vlm.architecture, part.prefix)
        self._heads: dict[int, Heads] = {}
        self.found: dict[int, Tensor] = {}  # block -> [row, head, key]

    def hooks(self) -> list[tuple[str, Callable]]:
        """The functions to run with."""
        return [(self._part.point(n, "attn.hook_v"), self._look) for n in self._layers]

    @property
    def read(self) -> list[str]:
        """The points that `scale` needs, at the queries."""
        every = (self._part.point(n, rest) for n in self._w_o for rest in _REACHING)
        return [name for name in every if name in self._stream.arch.points]

    def scale(self, layer: int, cache: Mapping[str, Tensor], row: int) -> Tensor | float:
        """What `found` of a block is divided by, `[query, 1]`: the scale of a norm behind heads.

        Raises:
            AttentionError: The heads' values, through the output projection, do not make what
                attention adds.
        """
        if layer not in self._w_o:
            return 1.0
        if layer not in self._heads:
            held = {name: cache[name].to(self._device) for name in self.read}
            heads = self._stream.heads(held, layer)
            if heads is None:
                raise AttentionError(
                    f"Block {layer}: {self._stream.why_whole[layer]} Take weigh='value'."
                )
            self._heads[layer] = heads
        norm = self._heads[layer].norm
        return 1.0 if norm is None else norm.scale[row].float().cpu()

    def _look(self, v: Tensor, hook: Any) -> None:
        layer = hook.layer()
        nothing = v.new_zeros(1, 1, self._part.n_heads, v.shape[-1])
        v = v.detach().float().repeat_interleave(self._part.n_heads // v.shape[2], 2)
        if layer in self._w_o:  # [head, d_head, d_model]
            after = self._stream.reaching(layer, nothing)
            by_head = zip(v.unbind(2), self._w_o[layer].float().to(v.device), strict=True)
            norms = torch.stack([_added(x @ w, after).norm(dim=-1) for x, w in by_head], 1)
        else:
            norms = v.norm(dim=-1).transpose(1, 2)
        self.found[layer] = norms.float().cpu()


def _weighed(pattern: Tensor, norms: Tensor) -> Tensor:
    """`[head, query, key]`; a sink of no position, as GPT-OSS has, moves nothing."""
    return pattern[..., : norms.shape[-1]] * norms[:, None]


def _added(x: Tensor, heads: Heads | None) -> Tensor:
    """What the output projection gives as it is added, the scale of a norm behind it left out."""
    if heads is None:
        return x
    x = x * heads.factor
    norm = heads.norm
    return x if norm is None else replace(norm, scale=torch.ones_like(norm.scale[0, 0])).of_part(x)


def output_weight(vlm: HookedModel, part: Part, layer: int) -> Tensor:
    """The output projection of a block's heads, `[head, d_head, d_model]`.

    Raises:
        AttentionError: The block's output projection is not a plain linear layer.
    """
    if part.attn != "attn" or part.prefix == "encoder.":
        raise AttentionError(
            f"The output projections of {part.name} attention are not read here: take "
            "weigh='value'."
        )
    weights = HeadWeights("W_O", vlm.hf_model, vlm.architecture, part.prefix)
    try:
        return weights[layer]
    except StreamError as error:
        raise AttentionError(f"{error} Or take weigh='value'.") from None
