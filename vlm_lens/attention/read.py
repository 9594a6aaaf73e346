"""Attention of some positions, by block, head and key, as scores.

```
pattern[block, head, query, key]     a row sums to 1 over the keys that the query may see
  weigh="value"    pattern * |v_key|                 (how much is moved, not how it is divided)
  weigh="output"   pattern * |v_key W_O^head|        (what reaches the stream; Kobayashi et al.
                                                      2020, arXiv 2004.10102)
```

Only the rows of the queries asked for are computed, beside the attention that the model uses, so
that a long prompt costs little more than its plain forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlm_lens.attention.parts import AttentionError, Part, part_of
from vlm_lens.attention.sinks import SinkWatch
from vlm_lens.layout.positions import Last, Position, as_position
from vlm_lens.scores.places import sequence
from vlm_lens.scores.scores import Scores, scores

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions, Pictures, Promptable

WEIGHTS = ("pattern", "value", "output")


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
            `"vision"` (the tower) or `"cross"` (blocks that attend from text to pictures).
        weigh: `"pattern"` (shares, which sum to 1 over keys), `"value"` (times the norm of what
            is read) or `"output"` (times the norm of what that adds to the stream).
        interventions: What to change in the run.

    Returns:
        Scores by `layer`, `head`, `query` (left out where there is one) and `position` (the
        keys). Attention sinks are marked as `"sinks"`; `without_sinks()` leaves them out.

    Raises:
        AttentionError: A part, block or head that the model does not have, a batch of several
            rows, or another `weigh`.
        PositionError: A position that the prompt does not have.
    """
    if weigh not in WEIGHTS:
        raise AttentionError(f"weigh is one of {', '.join(WEIGHTS)}, not {weigh!r}.")
    prompt = vlm.as_prompt(prompt, images)
    if len(prompt) != 1:
        raise AttentionError(
            f"Attention is read of one prompt at a time; this is a batch of {len(prompt)} rows."
        )
    which = part_of(vlm, part)
    if at is None and which.queries != "text":
        raise AttentionError(
            "Say whose attention in the tower is meant: at=Patches(0, box=...), at=Images(0)."
        )
    at = Last() if at is None else as_position(at)
    layout = prompt.layout
    queries = at.resolve(layout, which.queries)
    chosen, picked = which.chosen(layers), which.chosen_heads(heads)
    rows = {row for row, _ in queries}
    if len(rows) > 1:
        raise AttentionError(
            f"{at} holds positions of several sequences of the tower; read one picture at a time."
        )
    names = [which.point(n, "attn.hook_pattern") for n in chosen]
    watch = SinkWatch(which)
    with vlm.hooks(watch.hooks(vlm.architecture.points)):
        _, cache = vlm.run_with_cache(
            prompt, names_filter=names, positions=at, device="cpu", interventions=interventions,
            last_logits=1,
        )  # fmt: skip
    patterns = [cache[name][0].float()[picked] for name in names]  # [head, query, key]
    if weigh != "pattern":
        norms = _norms(vlm, prompt, which, chosen, weigh, interventions)
        patterns = [p * n[picked][:, None] for p, n in zip(patterns, norms, strict=True)]
    keys = [pair for pair in sequence(layout, which.keys)]
    if which.keys != "text":  # one row of the tower's or projector's sequences
        row = next(iter(rows)) if which.queries != "text" else keys[0][0]
        keys = [pair for pair in keys if pair[0] == row] or keys
    lengths = {p.shape[-1] for p in patterns}
    if lengths != {len(keys)}:
        keys = [(keys[0][0] if keys else 0, i) for i in range(max(lengths))]
    values = torch.stack(patterns)
    axes: dict[str, Any] = {"layer": chosen, "head": picked}
    about: dict[str, Any] = {"model": vlm.name, "part": part, "weigh": weigh, "queries": str(at)}
    if len(queries) == 1:
        values = values[:, :, 0]
        about["query"] = queries[0][1]
    else:
        axes["query"] = [p for _, p in queries]
    sinks = watch.found(prompt)
    return scores(
        values.numpy(),
        {**axes, "position": [p for _, p in keys]},
        None if which.keys == "text" else [r for r, _ in keys],
        name={"pattern": "attention", "value": "attention x |v|", "output": "attention x |vW_O|"}[
            weigh
        ],
        layout=layout,
        pictures=prompt.images[0] if prompt.images else (),
        space=which.keys,
        marked={"sinks": sinks.positions} if which.queries == which.keys else {},
        about=about,
    )


def _norms(
    vlm: HookedModel, prompt: Any, part: Part, layers: Sequence[int], weigh: str, edits: Any
) -> list[Tensor]:
    """For each block, the norm by head of what each key moves, `[head, key]`."""
    names = [part.point(n, "attn.hook_v") for n in layers]
    _, cache = vlm.run_with_cache(
        prompt, names_filter=names, device="cpu", interventions=edits, last_logits=1
    )
    found = []
    for layer, name in zip(layers, names, strict=True):
        v = cache[name][0].float()  # [key, kv head, d_head]
        v = v.repeat_interleave(part.n_heads // v.shape[1], 1)
        if weigh == "output":
            w_o = output_weight(vlm, part, layer).float().cpu()  # [head, d_head, d_model]
            v = torch.einsum("khd,hdm->khm", v, w_o)
        found.append(v.norm(dim=-1).T)
    return found


def output_weight(vlm: HookedModel, part: Part, layer: int) -> Tensor:
    """The output projection of a block's heads, `[head, d_head, d_model]`.

    Raises:
        AttentionError: The block's output projection is not a plain linear layer.
    """
    from vlm_lens.points.sites import submodule

    site = vlm.architecture.points[part.point(layer, "attn.hook_z")].site
    module = submodule(vlm.hf_model, site.module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise AttentionError(
            f"Block {layer} writes its heads through a {type(module).__name__}, whose weight "
            "cannot be read head by head: take weigh='value'."
        )
    return weight.detach().T.unflatten(0, (part.n_heads, -1))
