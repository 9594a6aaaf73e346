"""The parts whose sum is a residual stream: the input, every head, every MLP, and the rest.

```
resid_post[n] = input + sum over blocks l <= n of
                  attention   sum of heads  after( z[h] @ W_O[h] )  + its bias
                  MLP
                  what the model adds between blocks (DeepStack)
input         = what the first block reads: embeddings with pictures in their places (and positions)
after         = nothing, a scale (Granite), a gate (cross-attention), or a norm held at its scale
```

What a part is comes from the points, and what is between a head and the stream is found by calling
the model's own output projection: where the heads do not make what attention adds, the block keeps
one part for its attention, and `why_whole` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlm_lens.errors import PointError
from vlm_lens.families import Architecture
from vlm_lens.points.placement import called
from vlm_lens.points.sites import FlatView, RowsView, ScaleView, View, submodule
from vlm_lens.stream.norm import FrozenNorm, frozen, tolerance
from vlm_lens.stream.refusal import StreamError

INPUT, HEAD, ATTENTION, BIAS, CROSSING, MLP, BLOCK, ADDED = (
    "input", "head", "attention", "attention bias", "cross-attention", "mlp", "block", "added",
)  # fmt: skip
_READ = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_cross_attn_out",
         "hook_mlp_out", "attn.hook_z")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Parts of one kind and block.

    Attributes:
        kind: `"input"`, `"head"`, `"attention"`, `"attention bias"`, `"cross-attention"`, `"mlp"`,
            `"block"`, `"added"`.
        layer: The block, 0-based; `None` for the input.
        values: `[part, ..., d_model]`: one entry, or one a head.
    """

    kind: str
    layer: int | None
    values: Tensor

    @property
    def names(self) -> list[str]:
        """A name for each entry: `input`, `L3H2`, `L3 mlp`."""
        if self.layer is None:
            return [self.kind]
        if self.kind == HEAD:
            return [f"L{self.layer}H{h}" for h in range(len(self.values))]
        return [f"L{self.layer} {self.kind}"]


@dataclass(frozen=True)
class Heads:
    """How a block's heads reach the stream.

    Attributes:
        project: The output projection, `[..., head * d_head] -> [..., d_model]`.
        factor: What its result is multiplied by.
        norm: The norm after it, at its scales; `None` without one.
    """

    project: Callable[[Tensor], Tensor]
    factor: Tensor | float
    norm: FrozenNorm | None

    @torch.no_grad()
    def of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What each head adds, `[head, ..., d_model]`, and what is no head's, `[..., d_model]`.

        Args:
            z: `[..., head, d_head]`.
        """
        n_heads = z.shape[-2]
        alone = z.new_zeros(n_heads + 1, *z.shape)
        for head in range(n_heads):
            alone[head, ..., head, :] = z[..., head, :]
        given = called(self.project, alone.flatten(-2))
        constant = given[-1].double()
        heads = (given[:-1].double() - constant) * self.factor
        constant = constant * self.factor
        if self.norm is None:
            return heads, constant
        return self.norm.of_part(heads), self.norm.of_part(constant) + self.norm.bias


@dataclass
class Stream:
    """The residual stream of a stack of blocks, taken apart.

    Attributes:
        model: The model.
        arch: Its parts.
        prefix: `""` for the language model, `"vision."` for the tower.
        why_whole: Block -> why its attention is one part, or why the block is.
    """

    model: nn.Module
    arch: Architecture
    prefix: str = ""
    why_whole: dict[int, str] = field(default_factory=dict)

    def name(self, layer: int, rest: str) -> str:
        """The full name of a point of a block."""
        return f"{self.prefix}blocks.{layer}.{rest}"

    def names(self, n_layers: int) -> list[str]:
        """The points that `parts` reads."""
        every = (self.name(i, rest) for i in range(n_layers) for rest in _READ)
        return [name for name in every if name in self.arch.points]

    def parts(
        self, values: Mapping[str, Tensor], n_layers: int, *, by_head: bool = True
    ) -> Iterator[Part]:
        """The parts of what leaves block `n_layers - 1`, in float64, block by block.

        They lie on one device, that of what enters the first block.

        Args:
            values: What was read: point name -> activation at the positions that are wanted.
            n_layers: How many blocks.
            by_head: Whether attention is taken apart into heads.

        Raises:
            StreamError: What was read is not what the model made.
        """
        first = values[self.name(0, "hook_resid_pre")]
        names = [name for name in self.names(n_layers) if name in values]
        values = {name: values[name].to(first.device) for name in names}
        yield Part(INPUT, None, first.double()[None])
        for layer in range(n_layers):
            yield from self._block(values, layer, by_head)
            if layer + 1 < n_layers:
                after = values[self.name(layer, "hook_resid_post")]
                before = values[self.name(layer + 1, "hook_resid_pre")]
                if not torch.equal(before, after):
                    yield Part(ADDED, layer, (before.double() - after.double())[None])

    def _block(self, values: Mapping[str, Tensor], layer: int, by_head: bool) -> Iterator[Part]:
        def read(rest: str) -> Tensor | None:
            found = values.get(self.name(layer, rest))
            return None if found is None else found.double()

        before, after = read("hook_resid_pre"), read("hook_resid_post")
        assert before is not None and after is not None
        attention, mlp = read("hook_attn_out"), read("hook_mlp_out")
        crossed = read("hook_cross_attn_out")
        if attention is not None and mlp is None:
            # no module gives it as the block adds it
            mlp = after - before - attention - (0 if crossed is None else crossed)
        if attention is None:
            if torch.equal(before, after):
                return  # the block was passed by
            self.why_whole[layer] = self.why_not(layer, "hook_attn_out")
            yield Part(BLOCK, layer, (after - before)[None])
            return
        size = after.abs().amax().clamp(min=1e-30)
        total = before + attention + (0 if crossed is None else crossed) + mlp
        error = float((total - after).abs().amax() / size)
        if error > tolerance(values[self.name(layer, "hook_resid_post")].dtype):
            raise StreamError(
                f"Block {layer} gives something else than its input plus what attention and MLP "
                f"add (off by {error:.2g} of its size), so it cannot be taken apart."
            )
        if by_head:
            yield from self._attention(values, layer, attention)
        else:
            yield Part(ATTENTION, layer, attention[None])
        if crossed is not None:
            yield Part(CROSSING, layer, crossed[None])
        yield Part(MLP, layer, mlp[None])

    def _attention(self, values: Mapping[str, Tensor], layer: int, added: Tensor) -> Iterator[Part]:
        found = self.heads(values, layer)
        if found is None:
            yield Part(ATTENTION, layer, added[None])
            return
        each, constant = found.of(values[self.name(layer, "attn.hook_z")])
        yield Part(HEAD, layer, each)
        if constant.any():
            yield Part(BIAS, layer, constant[None])

    def heads(self, values: Mapping[str, Tensor], layer: int) -> Heads | None:
        """How a block's heads reach the stream, at the positions that were read.

        Returns:
            `None` where they do not make what attention adds; `why_whole` then says why.
        """
        z = values.get(self.name(layer, "attn.hook_z"))
        if z is None:
            self.why_whole[layer] = self.why_not(layer, "attn.hook_z")
            return None
        heads = self.reaching(layer, z)
        added = values[self.name(layer, "hook_attn_out")].double()
        if heads is not None:
            each, constant = heads.of(z)
            error = (each.sum(0) + constant - added).abs().amax()
            if error <= tolerance(z.dtype) * added.abs().amax().clamp(min=1e-30):
                return heads
        self.why_whole[layer] = (
            "its heads, through the output projection, do not make what attention adds."
        )
        return None

    def normed_after(self, layer: int) -> bool:
        """Whether a norm stands between the heads of a block and the stream."""
        points = self.arch.points
        inner = points[self.name(layer, "attn.hook_z")].site.module
        outer = points[self.name(layer, "hook_attn_out")].site.module
        return inner != outer and not inner.startswith(f"{outer}.")

    def reaching(self, layer: int, z: Tensor) -> Heads | None:
        """How heads reach the stream, by the modules between, not yet proved; see `heads`."""
        points = self.arch.points
        inner = points[self.name(layer, "attn.hook_z")].site
        outer = points[self.name(layer, "hook_attn_out")].site
        project = submodule(self.model, inner.module)
        scale = _scale(outer.view)
        factor = scale.factor.double().to(z.device) if scale else 1.0
        if not self.normed_after(layer):
            return Heads(project, factor, None)
        with torch.no_grad():
            whole = called(project, z.flatten(-2))
        try:
            norm = frozen(submodule(self.model, outer.module), whole)
        except StreamError:
            return None
        return Heads(project, factor, norm)

    def why_not(self, layer: int, rest: str) -> str:
        """Why a point of a block was not read."""
        try:
            self.arch.points[self.name(layer, rest)]
        except PointError as error:
            return str(error)
        return "it was not read in this run."


def _scale(view: View | None) -> ScaleView | None:
    while isinstance(view, FlatView | RowsView):
        view = view.inner
    return view if isinstance(view, ScaleView) else None
