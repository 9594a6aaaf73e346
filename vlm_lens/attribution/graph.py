"""A model as a graph: what each part adds to the stream, and what each part reads of it.

```
senders     input, every head, every MLP (and what is added between blocks)
receivers   queries, keys and values of every head, every MLP, the logits
edge        sender -> receiver, where the sender comes before what the receiver reads

stage       input -1 | q, k, v of block l read < 2l | heads of block l 2l | MLP of block l reads
            < 2l + 1 and adds at 2l + 1 | logits read everything
```

The residual stream is a sum, so that each receiver may be given the stream with some senders
exchanged for others. Norms are those of the receiver, computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.gradients import recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.points.placement import called
from vlm_lens.points.sites import submodule
from vlm_lens.stream.parts import BIAS, HEAD, INPUT, Stream
from vlm_lens.stream.weights import HeadWeights

LOGITS = "logits"
_NEEDED = ("hook_resid_pre", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
           "attn.hook_z", "hook_attn_out", "hook_resid_mid", "ln2.hook_normalized",
           "hook_mlp_out", "hook_resid_post")  # fmt: skip
_LAST = "ln_final.hook_normalized"


@dataclass(frozen=True)
class Receiver:
    """What reads the stream.

    Attributes:
        name: `L2H1 q`, `L2 mlp`, `logits`; where keys and values are shared, `L2 k0`.
        layer: The block; `None` for the logits.
        kind: `"q"`, `"k"`, `"v"`, `"mlp"` or `"logits"`.
        head: The head, of queries or of keys; `None` for the others.
    """

    name: str
    layer: int | None
    kind: str
    head: int | None = None

    @property
    def stage(self) -> float:
        """It reads senders of lower stages."""
        if self.layer is None:
            return float("inf")
        return 2 * self.layer + (self.kind == "mlp")


class Graph:
    """The graph of a model's text blocks.

    Args:
        vlm: The model.

    Raises:
        AttributionError: Its blocks are not heads and MLPs that each add to the stream and each
            read it through a norm of their own.
    """

    def __init__(self, vlm: HookedModel):
        self.vlm, self.arch = vlm, vlm.architecture
        self.stream = Stream(vlm.hf_model, self.arch)
        self.n_layers = vlm.cfg.n_layers
        for layer in range(self.n_layers):
            self._check(layer)

    def _check(self, layer: int) -> None:
        stream, points = self.stream, self.arch.points
        lost = next((n for n in _NEEDED if stream.name(layer, n) not in points), None)
        if lost is not None:
            raise AttributionError(
                f"Edges need every part of a block: {stream.why_not(layer, lost)} Attribute nodes, "
                "or patch paths."
            )
        if points[stream.name(layer, "attn.hook_v")].space != "text":
            raise AttributionError(
                f"Block {layer} reads pictures by cross-attention, whose keys and values do not "
                "come from this stream: attribute nodes."
            )
        if stream.normed_after(layer):
            raise AttributionError(
                f"In block {layer} a norm stands between the heads and the stream, so what one "
                "head adds depends on the others and edges do not add up: attribute nodes, or "
                "patch paths."
            )

    @cached_property
    def names(self) -> list[str]:
        """The points that are read of a run."""
        own = [self.stream.name(i, n) for i in range(self.n_layers) for n in _NEEDED]
        return [*own, _LAST]

    @cached_property
    def receivers(self) -> list[Receiver]:
        """All receivers, in the order in which they read."""
        found = []
        shared = self.arch.cfg.n_key_value_heads < self.arch.cfg.n_heads
        for layer in range(self.n_layers):
            for kind in "qkv":
                weights = self.weights(kind)[layer]
                for head in range(len(weights)):
                    own = f"L{layer}H{head} {kind}"
                    name = f"L{layer} {kind}{head}" if shared and kind != "q" else own
                    found.append(Receiver(name, layer, kind, head))
            found.append(Receiver(f"L{layer} mlp", layer, "mlp"))
        return [*found, Receiver(LOGITS, None, LOGITS)]

    def weights(self, kind: str) -> HeadWeights:
        """The projections of queries, keys or values."""
        return HeadWeights(f"W_{kind.upper()}", self.vlm.hf_model, self.arch)

    def norm(self, layer: int | None, which: int = 1) -> nn.Module:
        """The norm before attention (1) or before the MLP (2) of a block; the final norm."""
        if layer is None:
            return self.arch.final_norm(self.vlm.hf_model)
        name = self.stream.name(layer, f"ln{which}.hook_normalized")
        return submodule(self.vlm.hf_model, self.arch.points[name].site.module)

    def senders(self, values: Mapping[str, Tensor]) -> tuple[list[str], list[float], Tensor]:
        """What each sender adds in a run.

        Args:
            values: What was read of the run.

        Returns:
            Names, stages, and `[sender, batch, pos, d_model]`.
        """
        names, stages, found = [], [], []
        for part in self.stream.parts(values, self.n_layers):
            if part.kind == BIAS:
                continue
            names += part.names
            stage = -1 if part.kind == INPUT else 2 * part.layer + (part.kind != HEAD)
            stages += [stage] * len(part.values)
            found.append(part.values.float())
        if self.stream.why_whole:
            layer, why = next(iter(self.stream.why_whole.items()))
            raise AttributionError(f"Block {layer} cannot be taken apart into heads: {why}")
        return names, stages, torch.cat(found)

    def allowed(self, stages: Sequence[float]) -> np.ndarray:
        """Which sender comes before which receiver, `[sender, receiver]`."""
        reads = np.array([r.stage for r in self.receivers])
        return np.array(stages)[:, None] < reads[None, :]

    def input_gradients(
        self, gradients: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Gradients at what each receiver reads, by itself: receiver -> `[batch, pos, d_model]`.

        Args:
            gradients: At the points of `names`.
            values: At the same.
        """
        found: dict[str, Tensor] = {}
        for receiver_layer in range(self.n_layers):
            stream = values[self.stream.name(receiver_layer, "hook_resid_pre")]
            norm = self.norm(receiver_layer)
            for kind in "qkv":
                given = gradients[self.stream.name(receiver_layer, f"attn.hook_{kind}")]
                weight = self.weights(kind)[receiver_layer]  # [head, d_model, d_head]
                pulled = torch.einsum("bphe,hde->hbpd", given.float(), weight.float())
                each = _through(norm, stream, pulled)
                mine = [r for r in self.receivers if (r.layer, r.kind) == (receiver_layer, kind)]
                found |= {r.name: each[r.head] for r in mine}
            middle = values[self.stream.name(receiver_layer, "hook_resid_mid")]
            given = gradients[self.stream.name(receiver_layer, "ln2.hook_normalized")]
            found[f"L{receiver_layer} mlp"] = _through(
                self.norm(receiver_layer, 2), middle, given[None]
            )[0]
        end = values[self.stream.name(self.n_layers - 1, "hook_resid_post")]
        found[LOGITS] = _through(self.norm(None), end, gradients[_LAST][None])[0]
        return found


def _through(norm: nn.Module, x: Tensor, gradients: Tensor) -> Tensor:
    """Gradients at what a norm gives as gradients at what it reads, `[n, batch, pos, d_model]`."""
    with recording():
        wide = x.detach().expand(len(gradients), *x.shape).clone().requires_grad_()
        out = called(norm, wide)
        (found,) = torch.autograd.grad(out, wide, gradients.to(out))
    return found
