"""What the parts of one block are, found in a recorded forward and proved by its numbers.

Nothing is taken for its name alone: what a block adds to the stream must make the sum that it
gives; values must be those that attention mixes; what enters the output projection must be what
attention gave; neurons must be the non-linearity of what enters them. What cannot be proved is
declared missing, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor, nn

from vlm_lens.families.parts.found_attention import place_attention
from vlm_lens.families.parts.found_block import ATTENTION, MLP, Block, Part
from vlm_lens.families.parts.found_mlp import mlp_of, place_mlp
from vlm_lens.families.parts.recording import Mixing, Recording, same
from vlm_lens.families.parts.stack import SiteMaker
from vlm_lens.points.sites import MidSite, OutputSite, ScaleView

_BRANCHES = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out")
_NORMS = ("ln1.hook_normalized", "ln2.hook_normalized")


def describe_block(
    block: nn.Module,
    path: str,
    stream: Tensor,
    recording: Recording,
    activation: Callable | None,
    scale: float,
    *,
    single: bool = False,
) -> Block:
    """Finds and proves the parts of one block.

    Args:
        block: The module.
        path: Its path.
        stream: What enters it.
        recording: A forward of its model.
        activation: The MLP's non-linearity, where it has none of its own.
        scale: What the block multiplies what it adds by, if its config says so.
        single: Whether tensors of two axes are one sequence, as in a tower that packs pictures.
    """
    found = Block()
    after = recording.calls[path].gave
    parts = [
        Part(name, block.get_submodule(name), inner, single)
        for name, inner in recording.inside(path)
        if not isinstance(block.get_submodule(name), nn.Dropout | nn.Identity)
    ]
    mixings = {
        name.removeprefix(f"{path}."): mixing
        for name, mixing in recording.attention.items()
        if name.startswith(f"{path}.")
    }
    pair = _branches(parts, stream, after, scale)
    if pair is None:
        why = f"no two parts of a {type(block).__name__} make what it adds to the stream"
        attn = _source(parts, mixings)
        if attn is not None:
            place_attention(found, parts, attn, mixings[attn.name])
        found.lack(_BRANCHES + _NORMS + ATTENTION + MLP, f"{why}.")
        return found
    attn_out, mlp_out = pair
    if _mixes(mlp_out.name, mixings) and not _mixes(attn_out.name, mixings):
        attn_out, mlp_out = mlp_out, attn_out
    _place_branches(found, parts, (attn_out, mlp_out), stream, scale)
    attn = _source(parts, mixings)
    if attn is None:
        found.lack(
            ATTENTION, f"a {type(block).__name__} mixes positions without attention weights."
        )
    else:
        place_attention(found, parts, attn, mixings[attn.name])
        _place_norm(found, parts, attn, stream, "ln1.hook_normalized")
    mlp = mlp_of(parts, mlp_out, attn)
    place_mlp(found, parts, mlp, activation)
    return found


def _mixes(name: str, mixings: dict[str, Mixing]) -> bool:
    top = name.split(".")[0]
    return "attn" in top or "attention" in top or any(m.split(".")[0] == top for m in mixings)


def _branches(
    parts: list[Part], stream: Tensor, after: Tensor | None, scale: float
) -> tuple[Part, Part] | None:
    """The two modules whose outputs the block adds; of several with the same, the outermost."""
    if after is None:
        return None
    giving: list[Part] = []
    for part in sorted(parts, key=lambda p: p.name.count(".")):
        gave = part.call.gave
        if gave is None or gave.shape not in (stream.shape, stream.flatten(0, -2).shape):
            continue
        if same(gave, stream):
            continue
        if not any(same(gave, other.call.gave) for other in giving):
            giving.append(part)
    order = [p.name for p in parts]
    giving.sort(key=lambda p: order.index(p.name))
    for a, b in combinations(giving, 2):
        total = stream + scale * a.call.gave.reshape(stream.shape)
        if same(total + scale * b.call.gave.reshape(stream.shape), after):
            return a, b
    return None


def _place_branches(
    found: Block, parts: list[Part], pair: tuple[Part, Part], stream: Tensor, scale: float
) -> None:
    def added(part: Part) -> SiteMaker:
        return part.leaving(ScaleView(torch.tensor(scale)) if scale != 1.0 else None)

    attn_out, mlp_out = pair
    for name, part in (("hook_attn_out", attn_out), ("hook_mlp_out", mlp_out)):
        if part.call.overwritten:
            found.lack((name,), "the model adds to it in place.")
        else:
            found.sites[name] = added(part)
    middle = stream + scale * attn_out.call.gave.reshape(stream.shape)
    readers = _readers(parts, middle)
    if len(readers) == 1:
        entering, last = readers[0].entering(middle), added(mlp_out)
        found.sites["hook_resid_mid"] = lambda b: MidSite(entering(b), last(b), OutputSite(b))
    else:
        why = "attention and MLP read the same stream and are added together."
        found.lack(("hook_resid_mid",), f"{len(readers)} modules read it." if readers else why)


def _readers(parts: list[Part], value: Tensor) -> list[Part]:
    """The outermost modules that take a value."""
    taking = [p for p in parts if p.call.argument(value) is not None]
    return [p for p in taking if not any(p.name.startswith(f"{o.name}.") for o in taking)]


def _source(parts: list[Part], mixings: dict[str, Mixing]) -> Part | None:
    """The attention module whose output, normed or not, the block adds."""
    named = {p.name: p for p in parts}
    for name in sorted(mixings, key=len, reverse=True):
        query, key = mixings[name].query, mixings[name].key
        crosses = query is not None and key is not None and key.shape[2] != query.shape[2]
        if name in named and not crosses:
            return named[name]
    return None


def _place_norm(found: Block, parts: list[Part], reader: Part, stream: Tensor, name: str) -> None:
    """The norm between the stream and what reads it."""
    for part in parts:
        gave = part.call.gave
        if part is reader or gave is None or part.call.argument(stream) is None:
            continue
        if reader.call.argument(gave) is not None and gave.numel() == stream.numel():
            found.sites[name] = part.leaving()
            found.first_norm = part.name
            return
    found.lack((name,), f"{reader.name} reads the stream itself.")
