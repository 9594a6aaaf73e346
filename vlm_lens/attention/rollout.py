"""Attention through several blocks of a tower: rollout and flow (Abnar and Zuidema 2020).

    A~_l = a * mean over heads of A_l + (1 - a) * I        a = 1/2: the residual connection
    rollout = A~_L ... A~_1                                 which input each output mixes
    flow    = the largest flow from an output to an input, A~ as capacities

Both are summaries of patterns alone: values, MLPs and norms are not seen (arXiv 2005.00928).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlm_lens.attention.parts import AttentionError, Part, part_of
from vlm_lens.layout.positions import Position, as_position
from vlm_lens.scores.scores import Scores, scores

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Pictures, Promptable

_STEPS = 1 << 24  # flow is computed on whole numbers: this many to a capacity of 1
_EDGES = 4_000_000


def attention_rollout(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    at: Position | int | Sequence[int],
    layers: Sequence[int] | None = None,
    part: str = "vision",
    residual: float = 0.5,
) -> Scores:
    """What each position `at` has mixed of the tower's input, by rollout.

    Args:
        vlm: The model.
        prompt: One prompt.
        images: Pictures, where `prompt` is text.
        at: The outputs asked about.
        layers: Blocks, 0-based; all that are read by default.
        part: `"vision"`, or `"language"`.
        residual: The weight of the residual connection, from 0 to 1.

    Returns:
        Scores by `query` (left out where there is one) and `position`; each row sums to 1, to less
        where a sink of no position takes a part (GPT-OSS).

    Raises:
        AttentionError: `residual` outside 0 and 1, or positions of several pictures.
    """
    mixed, which, pairs, prompt = _mixed(vlm, prompt, images, at, layers, part, residual)
    rolled = mixed[0]
    for matrix in mixed[1:]:
        rolled = matrix @ rolled
    rows = rolled[[p for _, p in pairs]]
    return _scores(vlm, prompt, which, pairs, rows.numpy(), "attention rollout")


def attention_flow(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    at: Position | int | Sequence[int],
    layers: Sequence[int] | None = None,
    part: str = "vision",
    residual: float = 0.5,
) -> Scores:
    """The largest flow from each position `at` to each input, patterns as capacities.

    One maximum flow a pair of output and input: meant for small towers or few blocks.

    Args:
        vlm: The model.
        prompt: One prompt.
        images: Pictures, where `prompt` is text.
        at: The outputs asked about.
        layers: Blocks, 0-based; all that are read by default.
        part: `"vision"`, or `"language"`.
        residual: The weight of the residual connection, from 0 to 1.

    Raises:
        AttentionError: `residual` outside 0 and 1, positions of several pictures, or a network of
            more than four million edges.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    mixed, which, pairs, prompt = _mixed(vlm, prompt, images, at, layers, part, residual)
    n, depth = mixed[0].shape[0], len(mixed)
    edges = sum(int((m > 0).sum()) for m in mixed)
    if edges > _EDGES:
        raise AttentionError(
            f"The network has {edges:,} edges, more than flow is computed on ({_EDGES:,}): choose "
            "fewer blocks, or take attention_rollout."
        )
    starts, ends, capacities = [], [], []
    for level, matrix in enumerate(mixed):  # level 0 is the first block, whose keys are the input
        query, key = matrix.nonzero(as_tuple=True)
        starts.append(((level + 1) * n + query).numpy())
        ends.append((level * n + key).numpy())
        capacities.append((matrix[query, key] * _STEPS).round().to(torch.int32).numpy())
    size = (depth + 1) * n
    graph = csr_matrix(
        (np.concatenate(capacities), (np.concatenate(starts), np.concatenate(ends))),
        shape=(size, size),
    )
    rows = np.array(
        [
            [maximum_flow(graph, depth * n + p, target).flow_value / _STEPS for target in range(n)]
            for _, p in pairs
        ],
        dtype=np.float32,
    )
    return _scores(vlm, prompt, which, pairs, rows, "attention flow")


def _mixed(
    vlm: HookedModel, prompt: Any, images: Any, at: Any, layers: Any, part: str, residual: float
) -> tuple[list[Tensor], Part, list[tuple[int, int]], Any]:
    """The blocks' matrices `[query, key]`, in order, and the positions asked about."""
    if not 0 <= residual <= 1:
        raise AttentionError(f"residual is a share from 0 to 1, not {residual}.")
    prompt = vlm.as_prompt(prompt, images)
    which = part_of(vlm, part)
    points = vlm.architecture.points
    read = [n for n in which.layers if points[which.point(n, "attn.hook_pattern")].writable]
    chosen = which.chosen(layers) if layers is not None else read or list(which.layers)
    pairs = as_position(at).resolve(prompt.layout, which.queries)
    rows = {row for row, _ in pairs}
    if len(rows) != 1:
        raise AttentionError("Choose positions of one picture's sequence.")
    row = rows.pop()
    names = [which.point(n, "attn.hook_pattern") for n in chosen]
    _, cache = vlm.run_with_cache(prompt, names_filter=names, device="cpu", last_logits=1)
    eye = torch.eye(cache[names[0]].shape[-2])  # a sink of no position, as GPT-OSS has, is no key
    row = row if which.queries != "text" else 0
    mixed = [
        (1 - residual) * cache[name][row, ..., : len(eye)].float().mean(0) + residual * eye
        for name in names
    ]
    return mixed, which, pairs, prompt


def _scores(
    vlm: HookedModel, prompt: Any, which: Part, pairs: list, rows: np.ndarray, name: str
) -> Scores:
    keys = which.keys_of(prompt.layout, pairs[0][0], rows.shape[-1])
    rows = rows[:, [p for _, p in keys]]
    axes: dict[str, Any] = {"query": [p for _, p in pairs], "position": [p for _, p in keys]}
    if len(pairs) == 1:
        rows, axes = rows[0], {"position": axes["position"]}
    return scores(
        rows, axes, None if which.keys == "text" else [r for r, _ in keys], name=name,
        layout=prompt.layout, pictures=prompt.images[0] if prompt.images else (),
        space=which.keys, about={"model": vlm.name, "part": which.name},
    )  # fmt: skip
