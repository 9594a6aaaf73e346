"""What the parts of one block are, found in a recorded forward and proved by its numbers.

Nothing is taken for its name alone: what a block adds to the stream must make the sum that it
gives; values must be those that attention mixes; what enters the output projection must be what
attention gave; neurons must be the non-linearity of what enters them. What cannot be proved is
declared missing, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from vlm_lens.families.parts.found_attention import place_attention
from vlm_lens.families.parts.found_block import ATTENTION, MLP, Block, Part, norm_like
from vlm_lens.families.parts.found_mlp import mlp_of, place_mlp
from vlm_lens.families.parts.recording import Mixing, Recording, same
from vlm_lens.families.parts.stack import SiteMaker
from vlm_lens.points.sites import MidSite, OutputSite, ScaleView

_BRANCHES = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out")
_NORMS = ("ln1.hook_normalized", "ln2.hook_normalized")
_CROSS = ("hook_cross_attn_out", "hook_resid_mid_cross")


@dataclass(frozen=True)
class _Added:
    """What a block adds to the stream, in order.

    Attributes:
        parts: The modules whose outputs it adds.
        norms: Of a block that norms each sum before it goes on, the norms.
    """

    parts: tuple[Part, ...]
    norms: tuple[Part, ...] = ()


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
        and recording.times(f"{path}.{name}") <= recording.times(path)
    ]
    mixings = {
        name.removeprefix(f"{path}."): mixing
        for name, mixing in recording.attention.items()
        if name.startswith(f"{path}.")
    }
    crossing = [name for name, mixing in mixings.items() if mixing.crosses]
    added = _branches(parts, stream, after, scale, crossing)
    if added is None:
        why = f"no two parts of a {type(block).__name__} make what it adds to the stream"
        attn = _source(parts, mixings)
        if attn is not None:
            place_attention(found, parts, attn, mixings[attn.name])
        found.lack(_BRANCHES + _NORMS + ATTENTION + MLP, f"{why}.")
        return found
    attn_out, *_, mlp_out = added.parts
    if (
        len(added.parts) == 2
        and _mixes(mlp_out.name, mixings)
        and not _mixes(attn_out.name, mixings)
    ):
        attn_out, mlp_out = mlp_out, attn_out
    if added.norms:
        _place_normed(found, added)
    else:
        _place_branches(found, parts, added, (attn_out, mlp_out), stream, scale)
    if len(added.parts) == 3:
        _place_crossing(found, parts, crossing, mixings)
    attn = _source(parts, mixings)
    if attn is None:
        found.lack(
            ATTENTION, f"a {type(block).__name__} mixes positions without attention weights."
        )
    else:
        place_attention(found, parts, attn, mixings[attn.name])
        if not added.norms:
            _place_norm(found, parts, attn, stream, "ln1.hook_normalized")
    mlp = None if added.norms else mlp_of(parts, mlp_out, attn)
    place_mlp(found, parts, mlp, activation, mlp_out)
    return found


def unseen_block(why: str) -> Block:
    """A block of which only the stream entering and leaving it is shown."""
    found = Block()
    found.lack(_BRANCHES + _NORMS + ATTENTION + MLP, why)
    return found


def _mixes(name: str, mixings: dict[str, Mixing]) -> bool:
    top = name.split(".")[0]
    return "attn" in top or "attention" in top or any(m.split(".")[0] == top for m in mixings)


def _branches(
    parts: list[Part], stream: Tensor, after: Tensor | None, scale: float, crossing: list[str]
) -> _Added | None:
    """The modules whose outputs the block adds; of several with the same, the outermost.

    They are two, and three in a block that attends to another sequence too.
    """
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
    for n in (2, 3) if crossing else (2,):
        for chosen in combinations(giving, n):
            total = stream
            for part in chosen:
                total = total + scale * part.call.gave.reshape(stream.shape)
            if same(total, after):
                return _Added(chosen)
    return _normed(parts, giving, stream, after)


def _normed(parts: list[Part], giving: list[Part], stream: Tensor, after: Tensor) -> _Added | None:
    """What a block adds that norms each sum: `x = norm(x + part)`, for one part after the other."""
    added, norms, x = [], [], stream
    for part in giving:
        total = x + part.call.gave.reshape(x.shape)
        for norm in parts:
            if norm_like(norm) and norm.call.argument(total) is not None:
                added, norms, x = [*added, part], [*norms, norm], norm.call.gave
                break
    if len(added) not in (2, 3) or not same(x, after):
        return None
    return _Added(tuple(added), tuple(norms))


def _place_normed(found: Block, added: _Added) -> None:
    """Points of a block that norms each sum: what goes on is what the norm gives."""
    found.norms_sums = True
    names = ("hook_attn_out", *_CROSS[:1], "hook_mlp_out")
    sums = ("hook_resid_mid", *_CROSS[1:], "")
    if len(added.parts) == 2:
        names, sums = names[::2], sums[::2]
    for name, total, part, norm in zip(names, sums, added.parts, added.norms, strict=True):
        found.sites[name] = part.leaving()
        if total:
            found.sites[total] = norm.leaving()
    found.lack(_NORMS, "the block norms each sum after it has added to the stream.")


def _place_crossing(
    found: Block, parts: list[Part], crossing: list[str], mixings: dict[str, Mixing]
) -> None:
    """Points of the attention to another sequence, by the names of attention in a block."""
    other = Block()
    part = next((p for p in parts if p.name in crossing), None)
    if part is not None:
        place_attention(other, parts, part, mixings[part.name])
    sizes = (other.n_heads, other.n_key_value_heads, other.d_head)
    found.cross_sizes = sizes
    for name in ATTENTION:
        if name in other.sites:
            found.sites[f"cross_{name}"] = other.sites[name]
        else:
            found.lacks[f"cross_{name}"] = other.lacks.get(name, "what it mixes is hidden.")


def _place_branches(
    found: Block, parts: list[Part], added_parts: _Added, pair: tuple[Part, Part],
    stream: Tensor, scale: float,
) -> None:  # fmt: skip
    def added(part: Part) -> SiteMaker:
        return part.leaving(ScaleView(torch.tensor(scale)) if scale != 1.0 else None)

    attn_out, mlp_out = pair
    for name, part in (("hook_attn_out", attn_out), ("hook_mlp_out", mlp_out)):
        if part.call.overwritten:
            found.lack((name,), "the model adds to it in place.")
        else:
            found.sites[name] = added(part)
    middle, name = stream, "hook_resid_mid"
    for part in added_parts.parts[:-1]:
        middle = middle + scale * part.call.gave.reshape(stream.shape)
    if len(added_parts.parts) == 3:
        found.sites[_CROSS[0]] = added(added_parts.parts[1])
        found.lack(
            (name,), "cross-attention stands between; hook_resid_mid_cross is what the MLP reads."
        )
        name = _CROSS[1]
    readers = _readers(parts, middle)
    if len(readers) == 1:
        entering, last = readers[0].entering(middle), added(mlp_out)
        found.sites[name] = lambda b: MidSite(entering(b), last(b), OutputSite(b))
    else:
        why = "attention and MLP read the same stream and are added together."
        found.lack((name,), f"{len(readers)} modules read it." if readers else why)


def _readers(parts: list[Part], value: Tensor) -> list[Part]:
    """The outermost modules that take a value."""
    taking = [p for p in parts if p.call.argument(value) is not None]
    return [p for p in taking if not any(p.name.startswith(f"{o.name}.") for o in taking)]


def _source(parts: list[Part], mixings: dict[str, Mixing]) -> Part | None:
    """The attention module whose output, normed or not, the block adds."""
    named = {p.name: p for p in parts}
    for name in sorted(mixings, key=len, reverse=True):
        if name in named and not mixings[name].crosses:
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
