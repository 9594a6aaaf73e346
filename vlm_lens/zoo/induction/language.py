"""The language model of toy-induction: a Llama whose heads are written down one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm_lens.zoo.induction.codes import PRIME, bare, code_book
from vlm_lens.zoo.induction.plan import (
    ANSWER,
    BLOCKS,
    BOS,
    COLON,
    CONST,
    D_HEAD,
    DEFAULT,
    GAIN,
    HEADS,
    IMAGE,
    INDUCTION,
    PREVIOUS,
    QUESTION,
    SCALE,
    SLOTS,
)

__all__ = ["ROPE_THETA", "fill_language_model"]

# Pair j of a head is turned by 10 ** (-j / 4) a position. The first pairs measure distance; the
# last ones, which hold codes, turn by less than a thousandth over a thousand positions.
ROPE_THETA = 1e12
_HALF = D_HEAD // 2
_CLOCKS = 6
_SINK = _HALF - PRIME - 1  # this pair and those after it hardly turn
_CODE = [*range(_HALF - PRIME, _HALF), *range(D_HEAD - PRIME, D_HEAD)]

# A head that goes by distance gives the right position a score of 6 * 128; the next best has 88
# less, and the sink lies in the middle.
_CLOCK_STRENGTH = 128.0
_CLOCK_SINK = _CLOCKS * _CLOCK_STRENGTH - 44.0
# A head that compares codes gives a match 300. Two other codes in one slot come to .42 of it at the
# most, and the sink lies between.
_MATCH = 300.0
_MATCH_SINK = 0.65 * _MATCH


@torch.no_grad()
def fill_language_model(model: nn.Module, head: nn.Linear, tokens: Sequence[str]) -> None:
    """Write the weights of a language model that was zero.

    Args:
        model: A LlamaModel of this plan's sizes.
        head: Its output layer.
        tokens: All tokens, by id.
    """
    codes = code_book(tokens)
    _fill_embedding(model.embed_tokens.weight, codes, tokens)
    norms = [model.norm] + [n for b in model.layers for n in (b.input_layernorm,
                            b.post_attention_layernorm)]  # fmt: skip
    for norm in norms:
        norm.weight.fill_(GAIN)

    def writer(place: tuple[int, int]) -> _Head:
        return _Head(model.layers[place[0]].self_attn, place[1])

    for place in ((b, h) for b in range(BLOCKS) for h in range(HEADS)):
        if place not in (QUESTION, PREVIOUS, INDUCTION, ANSWER):
            writer(place).sink(_CLOCK_SINK)

    question = writer(QUESTION)
    question.looks_back(3, {COLON: 1.0})
    question.sink(_CLOCK_SINK)
    question.moves("SELF", "NAME")

    previous = writer(PREVIOUS)
    previous.looks_back(1, {CONST: 1.0, IMAGE: -1.0})
    previous.sink(_CLOCK_SINK)
    previous.moves("SELF", "PREV")
    previous.moves("NAME", "KEY")

    induction = writer(INDUCTION)
    induction.compares("SELF", "PREV")
    induction.sink(_MATCH_SINK, {COLON: 2 * _MATCH, IMAGE: 2 * _MATCH})
    induction.moves("TOKEN", "OUT")

    answer = writer(ANSWER)
    answer.compares("NAME", "KEY")
    answer.sink(_MATCH_SINK)
    answer.moves("TOKEN", "OUT")

    head.weight[:, SLOTS["OUT"]] = SCALE * codes
    head.weight[tokens.index("</s>"), CONST] = DEFAULT


def _fill_embedding(weight: Tensor, codes: Tensor, tokens: Sequence[str]) -> None:
    weight[:, SLOTS["TOKEN"]] = codes
    weight[:, SLOTS["SELF"]] = codes[bare(tokens)]
    weight[:, CONST] = 1.0
    weight[tokens.index(":"), COLON] = 1.0
    start = tokens.index("<s>")
    weight[start, SLOTS["TOKEN"]] = 0.0  # what a head at the sink reads is nothing
    weight[start, SLOTS["SELF"]] = 0.0
    weight[start, BOS] = 1.0


class _Head:
    """One attention head: where it looks, and what it moves."""

    def __init__(self, attention: nn.Module, head: int):
        rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
        self.q = attention.q_proj.weight[rows]
        self.k = attention.k_proj.weight[rows]
        self.v = attention.v_proj.weight[rows]
        self.o = attention.o_proj.weight[:, rows]
        self.used = 0

    def looks_back(self, distance: int, gate: dict[int, float]) -> None:
        """A score that is largest at one distance, from positions at which the gate is open.

        Rotary embedding turns pair j of a query and a key by their distance times its rate. The
        query is turned forward by the wanted distance, so that all pairs agree there alone.
        """
        for j in range(_CLOCKS):
            angle = distance * ROPE_THETA ** (-2 * j / D_HEAD)
            for coordinate, value in gate.items():
                strength = _CLOCK_STRENGTH * math.sqrt(D_HEAD) * value
                self.q[j, coordinate] = strength * math.cos(angle)
                self.q[_HALF + j, coordinate] = -strength * math.sin(angle)
            self.k[j, CONST] = 1.0
            self.k[j, BOS] = -1.0

    def compares(self, query: str, key: str) -> None:
        """A score for each position whose slot `key` holds what `query` holds here."""
        for i, dim in enumerate(_CODE):
            self.q[dim, SLOTS[query].start + i] = _MATCH * math.sqrt(D_HEAD)
            self.k[dim, SLOTS[key].start + i] = 1.0

    def sink(self, score: float, more: dict[int, float] | None = None) -> None:
        """The score of `<s>`, at which a head looks that finds nothing."""
        for coordinate, value in {CONST: score, **(more or {})}.items():
            self.q[_SINK, coordinate] = value * math.sqrt(D_HEAD)
        self.k[_SINK, BOS] = 1.0

    def moves(self, source: str, target: str) -> None:
        """What it adds: the code in `source` at the place where it looks, to `target` here."""
        for i in range(2 * PRIME):
            self.v[self.used + i, SLOTS[source].start + i] = 1.0
            self.o[SLOTS[target].start + i, self.used + i] = 1.0
        self.used += 2 * PRIME
