"""The one place where an activation is changed. Imports torch, and `sparse`, which does alone.

Every engine lowers interventions to `Op`s and applies them here, so that engines can be exchanged
and tested against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from vlm_lens.sparse import SparseCoder

SET, ADD, SCALE, MEAN = "set", "add", "scale", "mean"
REMOVE, PROJECT, CLAMP, BLOCK = "remove", "project", "clamp", "block"
FEATURES, EXCHANGE = "features", "exchange"
WEIGH, SHARE = "weigh", "share"
EDGES = (BLOCK, WEIGH, SHARE)  # kinds that change what single keys are to queries
CELLS = ("pool", "keys")  # tensors whose first two columns are (row, position)
_EDIT = ("which", "factor", "shift", "error")
FOR_ALL = (
    "basis",
    "gamma",
    "positive",
    *_EDIT,
    *(f.name for f in fields(SparseCoder)),
)  # not one entry a place


_FAR = torch.finfo(torch.bfloat16).max


class IncompleteMean(ValueError):
    """A mean over places of which this call computes only some."""


class TooLarge(ValueError):
    """A value beyond what the activation's dtype holds."""


class NoKeyLeft(ValueError):
    """A query that could see no key any more, or none that the rest of its weight could go to."""


@dataclass(frozen=True)
class Op:
    """One change of one activation, in plain numbers.

    Attributes:
        point: The point's name.
        kind: `"set"` replaces, `"add"` adds, `"scale"` multiplies, `"mean"` replaces by a mean over
            places of the same activation, `"remove"` takes the part in a subspace away, `"project"`
            leaves that part only, `"clamp"` limits, `"block"` hides keys from queries; `"weigh"`
            gives keys other weights in the pattern, and `"share"` does so too and divides the rest
            among the other keys as before, so that rows still sum to 1;
            `"features"` changes features of a sparse coder, `"exchange"` sets the part in a
            subspace.
        rows: Index on the activation's first axis, one for each place.
        positions: Position in the whole sequence, one for each place.
        heads: Heads that are changed, `None` for all.
        tensors: `value` `[places or 1, heads or 1, features]` (without the axis of heads where
            the activation has none). For `"mean"`: `pool` `[n, 3]`, one (row, position, mean) for
            each place that enters a mean, and `takes` `[places]`, which mean each place takes. For
            `"remove"` and `"project"`: `basis` `[directions, features]`, orthonormal; of a removal
            `gamma` `[]`, how much goes, and `positive`, where only what points along the basis. For
            `"clamp"`: `low` and `high`, of the form of `value`. For `"block"`, `"weigh"` and
            `"share"`: `keys` `[n, 2]`, the (row, position) of each key that is meant for queries
            of its row; for the last two also `to`, the weight of each key, or `times`, what it is
            multiplied by, of the form of `value`. For `"features"`: those of a `SparseCoder`;
            `which` `[m]`, the features that are changed, and `factor` and `shift` `[m]`, by which:
            `f -> factor * f + shift`; and `error` where what the coder does not reconstruct stays.
            For `"exchange"`: `basis` and `value`.
        since: With no places: every position from this one on (tokens generated after a prompt).
        crossing: Whether keys are of another sequence than queries, counted from its beginning.
        source: The point of the same block whose activation at the same places a coder encodes,
            for `"features"`; the point's own where it is empty.
    """

    point: str
    kind: str
    rows: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    heads: tuple[int, ...] | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    since: int | None = None
    crossing: bool = False
    source: str = ""


def apply_op(
    op: Op,
    x: Tensor,
    offset: int = 0,
    held: Sequence[int] | None = None,
    length: int | None = None,
    source: Tensor | None = None,
    n_keys: int | None = None,
) -> tuple[Tensor, int]:
    """The activation after an op; the one given is left as it is.

    Args:
        op: What to change.
        x: The activation, `[rows, positions, (heads,) features]`.
        offset: Position in the whole sequence of the activation's first position.
        held: Which positions of the whole sequence the activation holds, in increasing order, where
            they are not one after another from `offset` on.
        length: Positions of the whole sequence so far, where `held` does not say it.
        source: The activation at `op.source`, of the same rows and positions.
        n_keys: How many of the last axis are keys; all by default.

    Returns:
        The changed activation and how many elements were written; `x` itself and 0 where none of
        the op's places lies in it.

    Raises:
        IncompleteMean: Some of the places of a mean lie outside this activation.
        NoKeyLeft: A query would see no key.
        TooLarge: A finite value would be infinite in the activation's dtype.
    """
    rows, positions, places = _places(op, x, offset, held)
    if rows.numel() == 0:
        return x, 0
    if op.kind == MEAN:
        _check_whole(op.tensors["pool"][:, 1], offset, x.shape[1])
    out = x.clone()
    index = (rows, positions)
    if op.heads is not None:
        heads = torch.tensor(op.heads).to(x.device, non_blocking=True)
        index = (rows[:, None], positions[:, None], heads[None, :])
    current = out[index]
    if op.kind == MEAN:
        new = _means(op.tensors["pool"], x, offset)[op.tensors["takes"].to(x.device)[places]]
        new = new[:, list(op.heads)] if op.heads is not None else new
    elif op.kind in EDGES:
        length = 0 if op.crossing else offset + x.shape[1] if held is None else length or 0
        meant = _meant(op.tensors["keys"], current, len(x), length, n_keys)[rows]
        if op.kind == BLOCK:
            new = _blocked(meant, current, rows)
        else:
            new = _weighed(op, meant & (current != 0), current, rows, places)
    elif op.kind in (REMOVE, PROJECT):
        inside = _inside(op, current).to(x.dtype)
        new = inside if op.kind == PROJECT else current - inside
    elif op.kind == EXCHANGE:
        new = _exchanged(op, current, places)
    elif op.kind == FEATURES:
        new = _recoded(op, current, current if source is None else source[rows, positions])
    else:
        new = _by_value(op, current, places)
    out[index] = new.expand_as(current)
    return out, current.numel()


def _inside(op: Op, current: Tensor) -> Tensor:
    """The part of places in a subspace; of a `"remove"`, as much of it as is to go."""
    basis = op.tensors["basis"].to(device=current.device, dtype=_precise(current))
    along = current.to(basis.dtype) @ basis.T
    if "positive" in op.tensors:
        along = along.clamp(min=0)
    inside = along @ basis
    return inside * op.tensors["gamma"].to(inside) if "gamma" in op.tensors else inside


def _recoded(op: Op, current: Tensor, source: Tensor) -> Tensor:
    """Places `[places, (heads,) features]` with features of a coder changed that reads `source`.

    With the error kept, only what the change adds is added, so that no change leaves every bit.
    """
    flat = current.flatten(1)
    coder = SparseCoder.of(op.tensors, flat.device)
    read = source.flatten(1)
    features = coder.encode(read)
    which, factor, shift = (op.tensors[n].to(flat.device) for n in ("which", "factor", "shift"))
    old = features[:, which]
    new = old * factor.to(old) + shift.to(old)
    if "error" in op.tensors:
        change = (new - old) @ coder.w_dec[which]
        return (flat + change.to(flat.dtype)).view_as(current)
    features = features.index_copy(1, which, new)
    return coder.decode(features, read).to(flat.dtype).view_as(current)


def _exchanged(op: Op, current: Tensor, places: Tensor) -> Tensor:
    """Places with their part in a subspace replaced by that of a value: `h + (v - h) B^T B`."""
    basis, value = (op.tensors[n].to(current.device) for n in ("basis", "value"))
    value = value[places] if len(value) > 1 else value
    basis = basis.to(_precise(current))
    change = (value.to(basis.dtype) - current.to(basis.dtype)) @ basis.T @ basis
    return (current.to(basis.dtype) + change).to(current.dtype)


def _by_value(op: Op, current: Tensor, places: Tensor) -> Tensor:
    """What stands at some places after an op that has a value for each, or one for all."""
    if op.kind == SET:
        return _at_places(op, "value", current, places)
    if op.kind == ADD:
        return current + _at_places(op, "value", current, places)
    if op.kind == SCALE:
        return current * _at_places(op, "value", current, places)
    if op.kind == CLAMP:
        limits = (_at_places(op, name, current, places) for name in ("low", "high"))
        return current.clamp(*limits)
    raise ValueError(f"Unknown kind of op: {op.kind!r}.")


def _at_places(op: Op, name: str, current: Tensor, places: Tensor) -> Tensor:
    """A tensor of an op that has an entry for each place, or one for all."""
    given, most = op.tensors[name], torch.finfo(current.dtype).max
    # bfloat16 reaches as far as float32; float16 does not
    if op.kind != CLAMP and most < _FAR and ((given.abs() > most) & given.isfinite()).any():
        raise TooLarge(f"{str(current.dtype).removeprefix('torch.')}, up to {most:.0f}")
    value = given.to(current.device, current.dtype, non_blocking=True)
    return value[places] if len(value) > 1 else value


def _meant(keys: Tensor, current: Tensor, n_rows: int, length: int, n_keys: int | None) -> Tensor:
    """Which keys an op means for queries of each row, `[rows, 1, keys]`.

    Args:
        keys: Row and position of each key, `[n, 2]`.
        current: Scores or weights of the queries, `[places, heads, keys]`.
        n_rows: How many rows there are.
        length: Positions of the whole sequence so far. A cache of a sliding window holds the last
            ones only, so that keys are counted from the end; a cache of fixed size holds more.
        n_keys: How many of the last axis are keys; sinks that are no position come after them.
    """
    n_keys = current.shape[-1] if n_keys is None else n_keys
    first = max(length - n_keys, 0)
    # where the keys lie, which is the host: a device would be waited for
    seen = (keys[:, 1] >= first) & (keys[:, 1] < first + n_keys) & (keys[:, 0] < n_rows)
    row, position = keys[seen].to(current.device, non_blocking=True).unbind(1)
    meant = current.new_zeros((n_rows, current.shape[-1]), dtype=torch.bool)
    meant[row, position - first] = True
    return meant.unsqueeze(1)


def _weighed(op: Op, meant: Tensor, pattern: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """A pattern with other weights at the keys meant that are seen at all."""
    precise = pattern.to(_precise(pattern))
    if "to" in op.tensors:
        weights = _at_places(op, "to", precise, places).expand_as(precise)
    else:
        weights = precise * _at_places(op, "times", precise, places)
    new = torch.where(meant, weights, precise)
    if op.kind == SHARE and "times" in op.tensors:
        new = new / new.sum(-1, keepdim=True)
    elif op.kind == SHARE:
        rest = 1 - torch.where(meant, new, 0).sum(-1, keepdim=True)
        total = torch.where(meant, 0, precise).sum(-1, keepdim=True)
        new = torch.where(meant, new, precise * (rest / total.clamp_min(1e-30)))
        new = torch.where(meant.any(-1, keepdim=True), new, precise)
    sums = new.sum(-1)
    if op.kind == SHARE:  # NaN and what cannot be shared out; a query of padding had no sum before
        lost = ~((sums - 1).abs() < 1e-3) | (new < -1e-6).any(-1)
        lost &= (precise.sum(-1) - 1).abs() < 1e-2
    else:
        lost = torch.zeros_like(sums, dtype=torch.bool)
    if lost.any():
        raise NoKeyLeft(f"row {int(rows[lost.any(-1)][0])}")
    return new.to(pattern.dtype)


def _blocked(hidden: Tensor, scores: Tensor, rows: Tensor) -> Tensor:
    """Scores `[places, heads, keys]` with minus infinity added at the keys that are hidden."""
    new = scores.masked_fill(hidden, -torch.inf)
    seen = new > torch.finfo(scores.dtype).min / 2
    # a query of padding saw nothing before either
    dead = ~seen.any(-1) & (scores > torch.finfo(scores.dtype).min / 2).any(-1)
    if dead.any():
        raise NoKeyLeft(f"row {int(rows[dead.any(-1)][0])}")
    return new


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _places(
    op: Op, x: Tensor, offset: int, held: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, local positions and place numbers of the op's places that lie in this activation."""
    # on the host, and moved without waiting: asking a device which places lie here would stop it
    here = range(offset, offset + x.shape[1]) if held is None else held
    if op.since is not None:
        new = [local for local, position in enumerate(here) if position >= op.since]
        found = [(row, local, 0) for row in range(x.shape[0]) for local in new]
    else:
        asked = enumerate(zip(op.rows, op.positions, strict=True))
        if held is None:
            found = [(row, p - offset, place) for place, (row, p) in asked if p in here]
        else:
            local_of = {position: local for local, position in enumerate(held)}
            found = [(row, local_of[p], place) for place, (row, p) in asked if p in local_of]
    moved = torch.tensor(found, dtype=torch.long).view(-1, 3).to(x.device, non_blocking=True)
    rows, local, places = moved.unbind(1)
    return rows, local, places


def _check_whole(positions: Tensor, offset: int, length: int) -> None:
    first, last = int(positions.min()), int(positions.max())
    if first < offset or last >= offset + length:
        raise IncompleteMean(
            f"the mean is over positions {first} to {last}, and this call computes {offset} to "
            f"{offset + length - 1}"
        )


def _means(pool: Tensor, x: Tensor, offset: int) -> Tensor:
    """The mean over each group of places, `[means, (heads,) features]`."""
    pool = pool.to(x.device)
    values = x[pool[:, 0], pool[:, 1] - offset]
    values = values.to(_precise(x))
    count = torch.bincount(pool[:, 2])
    total = values.new_zeros((len(count), *values.shape[1:])).index_add_(0, pool[:, 2], values)
    mean = total / count.clamp(min=1).view(-1, *[1] * (total.dim() - 1))
    return mean.to(x.dtype)
