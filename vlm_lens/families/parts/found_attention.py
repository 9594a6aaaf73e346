"""Queries, keys, values and what heads mix, proved by what an attention function was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_lens.families.parts.found_block import ATTENTION, Block, Part, norm_like
from vlm_lens.families.parts.recording import Mixing, same
from vlm_lens.points.sites import (
    AttentionSite,
    ColumnsView,
    FusedHeadView,
    HeadView,
    View,
)


def place_attention(found: Block, parts: list[Part], attn: Part, mixing: Mixing) -> None:
    """Places queries, keys, values, scores, pattern and what heads mix, as far as they are seen."""
    inner = [p for p in parts if p.name.startswith(f"{attn.name}.")]
    for stage in ("scores", "pattern"):
        name = "attn.hook_attn_scores" if stage == "scores" else "attn.hook_pattern"
        found.sites[name] = lambda b, s=stage: AttentionSite(f"{b}.{attn.name}", s)
    if mixing.mixed is None or mixing.times > 1:
        why = "its attention mixes several times" if mixing.times > 1 else "what it mixes is hidden"
        if mixing.times > 1:
            del found.sites["attn.hook_attn_scores"], found.sites["attn.hook_pattern"]
        found.lack(ATTENTION, f"{why}.")
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
        entering = part.entering(flat, HeadView(n_heads, d_head))
        if entering is not None:
            found.sites["attn.hook_z"] = entering
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
        if gave is None or gave.dim() != 3 or norm_like(part):
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
            yield part, view, view.split(gave, len(gave))


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
