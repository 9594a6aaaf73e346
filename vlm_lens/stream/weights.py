"""Weights under the names that analysis gives them, read where they are and never copied.

Of a tensor-parallel model, whose processes hold slices, embedding and unembedding are gathered, in
every process at once; heads are refused.

```
W_E [d_vocab, d_model]    W_U [d_model, d_vocab]
W_Q, W_K, W_V [layer, head] -> [d_model, d_head]      W_O [layer, head] -> [d_head, d_model]
```

A projection is found where its point is: what shows its output as heads shows its weight so, too,
whether queries, keys and values have a layer each or come out of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm_lens.families import Architecture
from vlm_lens.integers import as_integer
from vlm_lens.points.config import StackConfig
from vlm_lens.points.sites import FlatView, HeadView, RowsView, View, submodule
from vlm_lens.storage.weights import is_slice
from vlm_lens.stream.refusal import StreamError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def matrix(module: nn.Module, what: str) -> Tensor:
    """The weight of a linear layer as `[in, out]`, a view.

    Raises:
        StreamError: It is none, or its weight is packed (quantised) or elsewhere (offloaded).
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise StreamError(
            f"{what} is a {type(module).__name__}, which has no plain matrix of weights: load the "
            "model without quantisation."
        )
    if weight.is_meta:
        raise StreamError(
            f"The weights of {what} are not in memory (offloaded): load the model on one device."
        )
    weight = whole(weight)
    if isinstance(module, nn.Linear):
        return weight.T
    if type(module).__name__ == "Conv1D":  # GPT-2's: `[in, out]` as it is
        return weight
    raise StreamError(
        f"{what} is a {type(module).__name__}, whose result is not its weight alone: read it at "
        "its points, or merge what is added to it."
    )


def bias(module: nn.Module) -> Tensor | None:
    """The bias of a linear layer."""
    found = getattr(module, "bias", None)
    return whole(found) if isinstance(found, Tensor) else None


def whole(weight: Tensor) -> Tensor:
    """A weight without its gradient; gathered where each process holds a slice of it."""
    weight = weight.detach()
    return weight.full_tensor() if is_slice(weight) else weight  # type: ignore[operator]


@dataclass(frozen=True)
class HeadWeights:
    """The weights of every head of every block: `W_Q[layer, head]`, `W_Q[layer]`.

    Both are views of the model's own. Where several query heads share keys and values,
    `W_K[layer, head]` is that of a query head, and `W_K[layer]` has the heads of keys.

    Attributes:
        name: `W_Q`, `W_K`, `W_V` or `W_O`.
        model: The model.
        arch: Its parts.
        prefix: `""` for the language model, `"vision."` for the tower.
    """

    name: str
    model: nn.Module = field(repr=False)
    arch: Architecture = field(repr=False)
    prefix: str = ""

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        layer, head = key if isinstance(key, tuple) else (key, None)
        blocks = self._layer(as_integer(layer, "A block", StreamError))
        if head is None:
            return blocks
        head, n_heads = as_integer(head, "A head", StreamError), self._n_heads
        if not -n_heads <= head < n_heads:
            raise StreamError(f"{self.name}[{layer}, {head}]: heads are 0 to {n_heads - 1}.")
        return blocks[head % n_heads // (n_heads // len(blocks))]

    def __len__(self) -> int:
        size = self._size
        return size.n_layers

    def __iter__(self) -> Iterator[Tensor]:
        return (self._layer(i) for i in range(len(self)))

    def _layer(self, layer: int) -> Tensor:
        """`[head, in, out]`."""
        n = len(self)
        if not -n <= layer < n:
            raise StreamError(f"{self.name}[{layer}]: blocks are 0 to {n - 1}.")
        letter = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "z"}[self.name]
        name = f"{self.prefix}blocks.{layer % n}.attn.hook_{letter}"
        site = self.arch.points[name].site
        view = _inner(site.view)
        weight = matrix(submodule(self.model, site.module), f"{self.name} of block {layer % n}")
        if self.name == "W_O":
            assert isinstance(view, HeadView), "heads enter the output projection side by side"
            return weight.unflatten(0, (view.n_heads, view.d_head))
        if view is None:
            raise StreamError(f"{name} is no projection by heads.")
        return view.split(weight, 1).movedim(-2, 0)

    @property
    def _size(self) -> StackConfig:
        size = self.arch.cfg.vision if self.prefix else self.arch.cfg
        if size is None:
            raise StreamError("This model has no vision tower with points.")
        return size

    @property
    def _n_heads(self) -> int:
        return self._size.n_heads


def _inner(view: View | None) -> View | None:
    """A view of heads, without what rearranges rows and positions."""
    while isinstance(view, FlatView | RowsView):
        view = view.inner
    return view


class Weights:
    """Names of weights for a described model."""

    hf_model: PreTrainedModel
    architecture: Architecture

    @property
    def W_E(self) -> Tensor:  # noqa: N802
        """The token embedding, `[d_vocab, d_model]`, the model's own memory."""
        module = submodule(self.hf_model, self.architecture.decoder.embed)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
            raise StreamError("The token embedding has no plain matrix of weights in memory.")
        return whole(weight)

    @property
    def W_U(self) -> Tensor:  # noqa: N802
        """The unembedding, `[d_model, d_vocab]`, a view; logits are `x @ W_U` times a scale."""
        return matrix(submodule(self.hf_model, self.architecture.unembed), "The output layer")

    @property
    def b_U(self) -> Tensor | None:  # noqa: N802
        """The unembedding's bias, `[d_vocab]`; `None` without one."""
        return bias(submodule(self.hf_model, self.architecture.unembed))

    @property
    def W_Q(self) -> HeadWeights:  # noqa: N802
        """Query weights: `W_Q[layer, head]` is `[d_model, d_head]`."""
        return HeadWeights("W_Q", self.hf_model, self.architecture)

    @property
    def W_K(self) -> HeadWeights:  # noqa: N802
        """Key weights: `W_K[layer, head]` is `[d_model, d_head]`."""
        return HeadWeights("W_K", self.hf_model, self.architecture)

    @property
    def W_V(self) -> HeadWeights:  # noqa: N802
        """Value weights: `W_V[layer, head]` is `[d_model, d_head]`."""
        return HeadWeights("W_V", self.hf_model, self.architecture)

    @property
    def W_O(self) -> HeadWeights:  # noqa: N802
        """Output weights: `W_O[layer, head]` is `[d_head, d_model]`."""
        return HeadWeights("W_O", self.hf_model, self.architecture)

    @property
    def QK(self) -> Circuits:  # noqa: N802
        """`QK[layer, head]`: `W_Q W_K^T`, `[d_model, d_model]`, factored; without rotation."""
        return Circuits(lambda i, h: Factored(self.W_Q[i, h], self.W_K[i, h].T))

    @property
    def OV(self) -> Circuits:  # noqa: N802
        """`OV[layer, head]`: `W_V W_O`, `[d_model, d_model]`, factored."""
        return Circuits(lambda i, h: Factored(self.W_V[i, h], self.W_O[i, h]))


@dataclass(frozen=True)
class Circuits:
    """Products of two weights of a head, by `[layer, head]`."""

    make: Callable[[int, int], Factored] = field(repr=False)

    def __getitem__(self, key: tuple[int, int]) -> Factored:
        if not isinstance(key, tuple) or len(key) != 2:
            raise StreamError("A circuit is of one head: QK[layer, head].")
        return self.make(*key)


@dataclass(frozen=True)
class Factored:
    """A product of two matrices that is not multiplied out: `a @ b`, `[n, r] x [r, m]`.

    Attributes:
        a: `[n, r]`.
        b: `[r, m]`.
    """

    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)

    def __repr__(self) -> str:
        return f"Factored({list(self.shape)}, a {list(self.a.shape)} @ b {list(self.b.shape)})"

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return self.a.shape[0], self.b.shape[1]

    @property
    def T(self) -> Factored:  # noqa: N802
        """The transposed product."""
        return Factored(self.b.T, self.a.T)

    def full(self) -> Tensor:
        """The product itself, `[n, m]`."""
        return self.a @ self.b

    def __matmul__(self, other: Tensor | Factored) -> Factored:
        """The product with a matrix on the right, still factored by the same rank."""
        if isinstance(other, Factored):
            return Factored(self.a @ (self.b @ other.a), other.b)
        return replace(self, b=self.b @ other)

    def __rmatmul__(self, other: Tensor) -> Factored:
        """The product with a matrix on the left."""
        return replace(self, a=other @ self.a)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """`U [n, r], S [r], Vh [r, m]` of the product, by two QR decompositions of the factors."""
        q_a, r_a = torch.linalg.qr(self.a.float())
        q_b, r_b = torch.linalg.qr(self.b.float().T)
        u, s, vh = torch.linalg.svd(r_a @ r_b.T)
        return q_a @ u, s, vh @ q_b.T

    def norm(self) -> Tensor:
        """The Frobenius norm of the product."""
        return ((self.a.T @ self.a) * (self.b @ self.b.T)).sum().clamp(min=0).sqrt()

    def eigenvalues(self) -> Tensor:
        """Those of a square product that are not zero by its rank, `[r]`, complex.

        Their sum over the sum of their magnitudes is the copying score of an OV circuit.
        """
        return torch.linalg.eigvals((self.b @ self.a).float())
