"""Where an activation lives in a Hugging Face module tree, and how to take it out and put it back.

A family describes each of its points by one of these small values; an engine turns them into
hooks. Nothing here knows of models, prompts or interventions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class View(Protocol):
    """How a module's tensor is shown as an activation, and put back."""

    def split(self, x: Tensor, rows: int) -> Tensor:
        """The activation; `rows` is the batch size of this forward pass."""

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The module's tensor with the activation put back."""


@dataclass(frozen=True)
class HeadView:
    """`[..., n_heads * d_head]` shown as `[..., n_heads, d_head]`."""

    n_heads: int
    d_head: int

    def split(self, x: Tensor, rows: int) -> Tensor:
        """A view of the same memory."""
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`."""
        return value.reshape(original.shape)


@dataclass(frozen=True)
class FusedHeadView:
    """Queries, keys or values out of one projection that makes all three.

    Attributes:
        n_heads: Number of heads.
        d_head: Width of a head.
        part: 0 for queries, 1 for keys, 2 for values.
        heads_first: Whether the last axis is `[n_heads, 3, d_head]` rather than
            `[3, n_heads, d_head]`.
    """

    n_heads: int
    d_head: int
    part: int
    heads_first: bool = False

    def split(self, x: Tensor, rows: int) -> Tensor:
        """`[..., 3 * n_heads * d_head]` -> `[..., n_heads, d_head]`, a view."""
        return self._unfold(x).select(self._axis, self.part)

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """A copy of the whole projection with this part replaced."""
        joined = original.clone()
        self._unfold(joined).select(self._axis, self.part).copy_(value)
        return joined

    @property
    def _axis(self) -> int:
        return -2 if self.heads_first else -3

    def _unfold(self, x: Tensor) -> Tensor:
        inner = (self.n_heads, 3) if self.heads_first else (3, self.n_heads)
        return x.unflatten(-1, (*inner, self.d_head))


@dataclass(frozen=True)
class FlatView:
    """`[rows * pos, ...]` shown as `[rows, pos, ...]`, with another view inside.

    With `single` the tensor has no axis of rows at all, and is shown as one row.
    """

    inner: View | None = None
    single: bool = False

    def split(self, x: Tensor, rows: int) -> Tensor:
        """The tensor with an axis of rows in front."""
        value = self.inner.split(x, rows) if self.inner else x
        return value.unflatten(0, (1 if self.single else rows, -1))

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`."""
        flat = value.flatten(0, 1)
        return self.inner.join(flat, original) if self.inner else flat.reshape(original.shape)


@dataclass(frozen=True)
class CellsView:
    """`[image, rows, cols, ...]`, a grid of patches, shown as `[image, rows * cols, ...]`."""

    def split(self, x: Tensor, rows: int) -> Tensor:
        """The patches row by row."""
        return x.flatten(1, 2)

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`."""
        return value.reshape(original.shape)


@dataclass(frozen=True)
class FeatureMapView:
    """`[image, channels, rows, cols]`, shown as `[image, rows * cols, channels]`."""

    def split(self, x: Tensor, rows: int) -> Tensor:
        """The cells row by row."""
        return x.flatten(2).transpose(1, 2)

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`, laid out in memory as the original: kernels round by layout."""
        return torch.empty_like(original).copy_(value.transpose(1, 2).reshape(original.shape))


@dataclass(frozen=True)
class RowsView:
    """`[..., features]`, prompts first, shown as `[rows, everything between, features]`."""

    inner: View | None = None

    def split(self, x: Tensor, rows: int) -> Tensor:
        """One axis of positions for each prompt."""
        flat = x.reshape(rows, -1, x.shape[-1])
        return self.inner.split(flat, rows) if self.inner else flat

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`."""
        return value.reshape(original.shape)


@dataclass(frozen=True)
class StreamsView:
    """Several residual streams on an axis of their own, shown side by side: `[rows, pos, all]`.

    Attributes:
        axis: The axis that counts them.
    """

    axis: int

    def split(self, x: Tensor, rows: int) -> Tensor:
        """The streams one after the other along the last axis."""
        return x.movedim(self.axis, -2).flatten(-2)

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The inverse of `split`, laid out in memory as the original: kernels round by layout."""
        streams = value.unflatten(-1, (original.shape[self.axis], -1)).movedim(-2, self.axis)
        return torch.empty_like(original).copy_(streams)


@dataclass(frozen=True)
class ColumnsView:
    """Some columns of the last axis, for a projection that makes two things at once."""

    start: int
    stop: int

    def split(self, x: Tensor, rows: int) -> Tensor:
        """`[..., all]` -> `[..., stop - start]`, a view."""
        return x[..., self.start : self.stop]

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """A copy of the whole tensor with these columns replaced."""
        joined = original.clone()
        joined[..., self.start : self.stop] = value
        return joined


@dataclass(frozen=True, eq=False)
class ScaleView:
    """What a block adds to the stream, where it multiplies a module's output by a learned vector.

    Attributes:
        weight: The vector, a parameter of the block, or a function that gives it: an offloaded
            block has its weights only while it runs.
        tanh: Whether the block multiplies by the hyperbolic tangent of it, as gates do.
    """

    weight: Tensor | Callable[[], Tensor] = field(repr=False)
    tanh: bool = False

    @property
    def factor(self) -> Tensor:
        """What the block multiplies by."""
        weight = self.weight() if callable(self.weight) else self.weight
        return weight.tanh() if self.tanh else weight

    def split(self, x: Tensor, rows: int) -> Tensor:
        """The product that the block itself makes."""
        return self.factor * x

    def join(self, value: Tensor, original: Tensor) -> Tensor:
        """The output that gives this product; where nothing changed, the very same.

        Where gradients are recorded, those of the output pass to the product. Where the factor is
        exactly 0 they cannot, because the block gives none, and a warning says so.
        """
        factor = self.factor
        zero = factor == 0
        same = (value == factor * original) | zero
        divided = value / torch.where(zero, torch.ones_like(factor), factor)
        if not torch.is_grad_enabled():
            return torch.where(same, original, divided)
        if zero.any():
            warnings.warn(
                "The block multiplies its output by a learned factor that is exactly 0, so the "
                "gradient at what it adds to the stream reads 0 there.",
                stacklevel=2,
            )
        unchanged = original.detach() + (divided - divided.detach())  # its value, that gradient
        return torch.where(zero, original, torch.where(same, unchanged, divided))


@dataclass(frozen=True)
class InputSite:
    """An argument of a module's forward: positional `index`, or `keyword` where it is named."""

    module: str
    keyword: str = "hidden_states"
    index: int = 0
    view: View | None = None

    def get(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        """The argument's value, `None` where this call does not pass it."""
        if len(args) > self.index:
            return args[self.index]
        return kwargs.get(self.keyword)

    def put(self, args: tuple, kwargs: dict[str, Any], value: Tensor) -> tuple[tuple, dict]:
        """The call's arguments with the value replaced."""
        if len(args) > self.index:
            return (*args[: self.index], value, *args[self.index + 1 :]), kwargs
        return args, {**kwargs, self.keyword: value}


@dataclass(frozen=True)
class OutputSite:
    """What a module returns: the tensor itself, or the part of a tuple or output object at `path`.

    With an empty path the tensor itself is meant, or the first entry where the module returns a
    tuple: decoder layers return a tensor in transformers 5 and returned a tuple in 4, and
    `output[0]` on the tensor would drop the batch dimension without a word.
    """

    module: str
    path: tuple[str | int, ...] = ()
    view: View | None = None

    def get(self, output: Any) -> Tensor:
        """The tensor meant by this site."""
        for key in self.path:
            output = output[key]
        return output if isinstance(output, Tensor) else output[0]

    def put(self, output: Any, value: Tensor) -> Any:
        """The output with the tensor replaced."""
        return _replace(output, self.path, value)


def _replace(output: Any, path: tuple[str | int, ...], value: Tensor) -> Any:
    if not path:
        if isinstance(output, dict):  # a ModelOutput, made for this call alone
            output[next(iter(output))] = value
            return output
        return value if isinstance(output, Tensor) else _with(output, 0, value)
    key, rest = path[0], path[1:]
    inner = _replace(output[key], rest, value)
    if isinstance(output, tuple):
        assert isinstance(key, int), "only a ModelOutput has names"
        return _with(output, range(len(output))[key], inner)
    output[key] = inner  # a ModelOutput, made for this call alone
    return output


def laid_as(value: Tensor, original: Tensor) -> Tensor:
    """A value laid out in memory as what it replaces: kernels round by layout."""
    strides = original.stride()
    if value.shape != original.shape or value.stride() == strides or overlaps(original):
        return value
    made = torch.empty_strided(
        original.shape, strides, dtype=value.dtype, device=value.device, layout=value.layout
    )
    return made.copy_(value)


def overlaps(x: Tensor) -> bool:
    """Whether places of a tensor may lie in one place of memory: no other can be written there."""
    reach = 1
    for step, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n > 1 and step < reach:
            return True
        reach += (n - 1) * step
    return False


def _with(output: Any, index: int, value: Tensor) -> Any:
    """Several outputs with one replaced, of the same kind: a tuple, one with names, a list."""
    made = (*output[:index], value, *output[index + 1 :])
    if isinstance(output, list):
        return [*made]
    return type(output)(*made) if hasattr(output, "_fields") else made


@dataclass(frozen=True)
class MidSite:
    """The residual stream between attention and MLP.

    No module receives this value as its own: the second norm reads it, and the block adds the MLP's
    output to it. So a write replaces the norm's input and the block's output becomes
    `mid + mlp_out`, the same sum that the block itself would have made; `branch`, as its view shows
    it, is what the block adds.
    """

    norm: InputSite
    branch: OutputSite
    block: OutputSite

    @property
    def module(self) -> str:
        """Path of the module at which the value is read."""
        return self.norm.module

    @property
    def view(self) -> View | None:
        """How the value is shown."""
        return self.norm.view


@dataclass(frozen=True)
class AttentionSite:
    """Attention scores (masked and scaled, before softmax) or pattern (after) of a module.

    Attributes:
        module: Path of the attention module.
        stage: `"scores"` or `"pattern"`.
        joined: Where the module attends in chunks, one call for each picture or window: path of the
            layer that reads the chunks' joined results. Scores and pattern are then those of the
            whole sequence, where positions of different chunks do not see each other.
    """

    module: str
    stage: str
    joined: str = ""
    view = None


Site = InputSite | OutputSite | MidSite | AttentionSite


def submodule(model: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module at a dotted path; the empty path is the model."""
    return model.get_submodule(path)
