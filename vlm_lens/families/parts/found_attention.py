"""Queries, keys, values and what heads mix, proved by what an attention function was given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_lens.families.parts.found_block import ATTENTION, Block, Part, norm_like
from vlm_lens.families.parts.recording import Mixing, same
from vlm_lens.points.sites import (
    AttentionSite,
    ColumnsView,
    FusedHeadView,
    HeadView,
    View,
)

_WEIGHTS = ("attn.hook_attn_scores", "attn.hook_pattern")


def place_attention(found: Block, parts: list[Part], attn: Part, mixing: Mixing) -> None:
    """Places queries, keys, values, scores, pattern and what heads mix, as far as they are seen."""
    inner = [p for p in parts if p.name.startswith(f"{attn.name}.")]
    if mixing.times > 1 or (mixing.mixed is None and mixing.times != 0):
        found.lack(ATTENTION, "its attention mixes several times.")
        return
    shown = mixing.by_interface and _registered(attn.module)
    if shown and not attn.single:
        _place_weights(found, attn, "")
    else:
        found.lack(_WEIGHTS, "its attention is none of transformers' own functions.")
    if mixing.mixed is None or mixing.value is None or mixing.query is None:
        found.lack(ATTENTION, "what it mixes is hidden.")
        return
    n_heads, d_value = mixing.mixed.shape[1], mixing.mixed.shape[-1]
    n_kv, d_head = _repeats(mixing.value), mixing.query.shape[-1]
    found.n_heads, found.n_key_value_heads, found.d_head = n_heads, n_kv, d_head
    if d_value != d_head:
        why = "keys and values come out of one compressed vector, and their widths differ."
        found.lack(ATTENTION, why)
        return
    flat = mixing.mixed.transpose(1, 2)
    for part in inner:
        key = part.call.argument(flat)
        if key is None:
            continue
        given = part.call.given[key].shape[-2:]
        apart = given == (n_heads, d_head) and part.call.given[key].dim() == 4
        entering = part.entering(flat, None if apart else HeadView(n_heads, d_head))
        if apart or given[-1] == n_heads * d_head:
            found.sites["attn.hook_z"] = entering
            if attn.single and shown:
                _place_weights(found, attn, part.name)
            break
    else:
        found.lack(("attn.hook_z",), "what attention gives is changed before it is projected.")
    value = mixing.value[:, :: mixing.value.shape[1] // n_kv]
    heads = {"q": n_heads, "k": n_kv, "v": n_kv}
    asked = {"q": mixing.query, "k": mixing.key[:, :: mixing.key.shape[1] // n_kv], "v": value}
    for letter, n in heads.items():
        for part, view, shown in _projections(inner, letter, heads, d_head):
            normed = [
                p.call.gave.view_as(shown) for p in inner
                if norm_like(p) and p.call.argument(shown) is not None
            ]  # fmt: skip
            if any(_is(letter, x, asked[letter]) for x in [shown, *normed]):
                found.sites[f"attn.hook_{letter}"] = part.leaving(view)
                break
        else:
            why = f"no layer of its attention gives {n} heads of {letter} as attention reads them."
            found.lack((f"attn.hook_{letter}",), why)


def _registered(module: nn.Module) -> bool:
    """Whether a module looks its attention function up where all of transformers' models do."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as USUAL

    home = sys.modules[type(module).__module__]
    return getattr(home, "ALL_ATTENTION_FUNCTIONS", USUAL) is USUAL


def _place_weights(found: Block, attn: Part, joined: str) -> None:
    """Places scores and pattern; `joined` reads the results of chunks, where it attends in some."""
    found.lacks = {n: why for n, why in found.lacks.items() if n not in _WEIGHTS}
    for name, stage in zip(_WEIGHTS, ("scores", "pattern"), strict=True):
        found.sites[name] = lambda b, s=stage: AttentionSite(
            f"{b}.{attn.name}", s, f"{b}.{joined}" if joined else ""
        )


def _repeats(value: Tensor) -> int:
    """How many different heads values have: grouped heads may be repeated beforehand."""
    n = value.shape[1]
    for times in range(n, 1, -1):
        if n % times == 0 and same(value, value[:, ::times].repeat_interleave(times, 1)):
            return n // times
    return n


def _projections(
    inner: list[Part], letter: str, heads: dict[str, int], d_head: int
) -> Iterator[tuple[Part, View, Tensor]]:
    """Layers that may give queries, keys or values, the view, and what it shows."""
    width = heads[letter] * d_head
    fused = sum(heads.values()) * d_head
    start = {"q": 0, "k": heads["q"] * d_head, "v": (heads["q"] + heads["k"]) * d_head}[letter]
    for part in inner:
        gave = part.call.gave
        if gave is None or gave.dim() != (2 if part.single else 3) or norm_like(part):
            continue
        views: list[View] = []
        if gave.shape[-1] == width:
            views = [HeadView(heads[letter], d_head)]
        elif gave.shape[-1] == fused:
            views = [HeadColumnsView(start, heads[letter], d_head)]
            if heads["k"] == heads["q"]:
                part_number = "qkv".index(letter)
                views.append(FusedHeadView(heads["q"], d_head, part_number, heads_first=True))
        for view in views:
            shown = view.split(gave, len(gave))
            yield part, view, shown[None] if part.single else shown


@dataclass(frozen=True)
class HeadColumnsView:
    """Some columns of `[..., columns]`, shown as `[..., n_heads, d_head]`."""

    start: int
    n_heads: int
    d_head: int

    @property
    def _columns(self) -> ColumnsView:
        return ColumnsView(self.start, self.start + self.n_heads * self.d_head)

    def split(self, x: Tensor, rows: int) -> Tensor:
        """A view of the same memory."""
        return self._columns.split(x, rows).unflatten(-1, (self.n_heads, self.d_head))

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """A copy of the whole tensor with these columns replaced."""
        return self._columns.join(value.flatten(-2), original)


def _is(letter: str, shown: Tensor, asked: Tensor) -> bool:
    """Whether a projection is what attention reads, up to rotation and norms of each head."""
    asked = asked.transpose(1, 2)
    if shown.shape != asked.shape:
        return False
    if letter == "v":
        return same(shown, asked)
    # at the first position rotary embeddings leave a head as it is; norms and scales keep signs
    mine, theirs = shown[:, 0].float(), asked[:, 0].float()
    return bool((torch.sign(mine) == torch.sign(theirs)).float().mean() > 0.95)
