"""What every head brings from every position: its values by key, through its output projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_lens.gradients import recording
from vlm_lens.layout.positions import Position
from vlm_lens.points.placement import called
from vlm_lens.stream.norm import tolerance
from vlm_lens.stream.parts import Heads, Stream
from vlm_lens.stream.readout import Readout
from vlm_lens.stream.refusal import StreamError

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions
    from vlm_lens.prompts.prompt import Prompt

_NEEDED = ("attn.hook_z", "attn.hook_v", "attn.hook_pattern")
_GATED = "what its heads give is not pattern times values (a gate stands between)."
_ELSEWHERE = "its keys are not positions of this sequence."


def by_source(
    vlm: HookedModel,
    prompt: Prompt,
    at: Position,
    stream: Stream,
    values: Mapping[str, Tensor],
    read: Readout,
    interventions: Interventions,
) -> tuple[Tensor, list[int], dict[str, str]]:
    """Shares of some logits by block, head and key.

    Args:
        vlm: The model.
        prompt: A prompt of one row.
        at: The queries.
        stream: The stream, whose points were read.
        values: What was read, at the queries.
        read: The logits as functions of the stream.
        interventions: What is changed in the run.

    Returns:
        `[query, token, layer, head, key]`, the blocks, and why others are left out.

    Raises:
        StreamError: No block's attention can be shared out.
    """
    layers = [n for n in range(vlm.cfg.n_layers) if stream.name(n, "hook_resid_post") in values]
    found, left = shares_by_key(vlm, prompt, at, stream, values, layers, read.directions,
                                interventions)  # fmt: skip
    if not found:
        raise StreamError(f"No head can be shared out by source: {next(iter(left.values()))}")
    return torch.stack([x[0] for x in found.values()], 2), list(found), left


def shares_by_key(
    vlm: HookedModel,
    prompt: Prompt,
    at: Position | None,
    stream: Stream,
    values: Mapping[str, Tensor],
    layers: Sequence[int],
    directions: Tensor,
    interventions: Interventions,
) -> tuple[dict[int, Tensor], dict[str, str]]:
    """Of each block that can be shared out `[row, query, token, head, key]`; and why others cannot.

    Args:
        vlm: The model.
        prompt: The prompt.
        at: The queries; `None` for all.
        stream: The stream.
        values: What was read of it, at the queries.
        layers: The blocks.
        directions: What is asked of the stream, `[token, row, query, d_model]`.
        interventions: What is changed in the run.
    """
    device = directions.device
    values = {name: value.to(device) for name, value in values.items()}
    points, left, linear = vlm.architecture.points, {}, {}
    own = points[stream.name(0, "hook_resid_pre")].space
    for layer in layers:
        lost = [n for n in _NEEDED if stream.name(layer, n) not in points]
        heads = None if lost else stream.heads(values, layer)
        if lost:
            left[f"block {layer}"] = stream.why_not(layer, lost[0])
        elif points[stream.name(layer, "attn.hook_v")].space != own:
            left[f"block {layer}"] = _ELSEWHERE
        elif heads is None:
            left[f"block {layer}"] = stream.why_whole[layer]
        else:
            linear[layer] = heads
    if not linear:
        return {}, left
    options = {"interventions": interventions, "last_logits": 1}
    names = [[stream.name(n, rest) for n in linear] for rest in _NEEDED]
    _, rows = vlm.run_with_cache(prompt, names_filter=names[2], positions=at, **options)
    _, keys = vlm.run_with_cache(prompt, names_filter=names[1], **options)
    found = {}
    for layer, z_name, v_name, pattern_name in zip(linear, *names, strict=True):
        z = values[z_name]
        pulled = pull_back(linear[layer], directions, z)
        shares = _shares(pulled, rows[pattern_name].to(device), keys[v_name].to(device), z)
        if shares is None:
            left[f"block {layer}"] = _GATED
        else:
            found[layer] = shares
    return found, left


def pull_back(heads: Heads, directions: Tensor, z: Tensor) -> Tensor:
    """Directions of the stream as directions of what heads mix.

    Args:
        heads: How they reach the stream.
        directions: `[token, batch, query, d_model]`.
        z: `[batch, query, head, d_head]`.

    Returns:
        `[token, batch, query, head, d_head]`.
    """
    if heads.norm is not None:
        directions = heads.norm.of_direction(directions)
    directions = directions * heads.factor
    with recording():
        at = torch.zeros(len(directions), *z.flatten(-2).shape, dtype=z.dtype, device=z.device)
        at.requires_grad_()
        given = called(heads.project, at)
        (pulled,) = torch.autograd.grad(given, at, directions.to(given))
    return pulled.double().unflatten(-1, z.shape[-2:])


def _shares(pulled: Tensor, pattern: Tensor, v: Tensor, z: Tensor) -> Tensor | None:
    """`[row, query, token, head, key]`; `None` where pattern and values do not make `z`."""
    pattern, v = pattern.double(), v.double()  # [row, head, query, key], [row, key, head, d_head]
    pattern = pattern[..., : v.shape[1]]  # a sink of no position, as GPT-OSS has, holds no value
    v = v.repeat_interleave(pattern.shape[1] // v.shape[2], 2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    size = z.abs().amax().clamp(min=1e-30)
    if mixed.shape != z.shape or (mixed - z).abs().amax() > tolerance(z.dtype) * size:
        return None
    along = torch.einsum("tbqhd,bkhd->bqthk", pulled, v)
    return along * pattern.transpose(1, 2)[:, :, None]
