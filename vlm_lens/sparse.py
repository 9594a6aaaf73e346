"""A sparse coder in plain tensors: what encodes an activation into features, and back.

```
z = (x - pre_bias) w_enc + b_enc        x [..., d_in], z [..., features]
f = relu(z)                             ReLU
    relu(z) where z > threshold         JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435)
    the k largest of each place         TopK (Gao et al. 2024, arXiv 2406.04093)
    the k n largest of n places         BatchTopK (Bussmann et al. 2024, arXiv 2412.06410)
y = f w_dec + b_dec (+ x w_skip)        y [..., d_out]
```

Imports nothing but torch, so that the kernel of writes can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseCoder:
    """The tensors of an autoencoder or transcoder.

    Attributes:
        w_enc: `[d_in, features]`.
        b_enc: `[features]`.
        w_dec: `[features, d_out]`.
        b_dec: `[d_out]`.
        pre_bias: Taken off before encoding, `[d_in]`.
        threshold: `[features]` or `[]`: features whose `z` is not above it are 0.
        k: How many features stay at each place, `[]`.
        batch_k: How many features stay of each place on average over all places, `[]`.
        signed: With `k`: whether features below 0 stay, `[]`.
        by_magnitude: With `signed`: whether the `k` largest by `|z|` stay, in place of those by
            `z`, `[]`.
        w_skip: `[d_in, d_out]`.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    pre_bias: Tensor | None = None
    threshold: Tensor | None = None
    k: Tensor | None = None
    batch_k: Tensor | None = None
    signed: Tensor | None = None
    by_magnitude: Tensor | None = None
    w_skip: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: torch.device) -> SparseCoder:
        """The coder that some tensors make, on a device; other names are left out."""
        known = [f.name for f in fields(cls) if f.name in tensors]
        return cls(**{name: tensors[name].to(device) for name in known})

    def encode(self, x: Tensor) -> Tensor:
        """The features of activations, in the dtype of the weights: `[..., features]`."""
        x = x.to(self.w_enc.dtype)
        z = (x if self.pre_bias is None else x - self.pre_bias) @ self.w_enc + self.b_enc
        if self.k is not None:
            kept = (z if self.by_magnitude is None else z.abs()).topk(int(self.k), dim=-1).indices
            values = z.gather(-1, kept)
            values = values if self.signed is not None else values.relu()
            return torch.zeros_like(z).scatter(-1, kept, values)
        if self.batch_k is not None:
            flat = z.relu().flatten()
            kept = flat.topk(min(int(self.batch_k) * (flat.numel() // z.shape[-1]), flat.numel()))
            return torch.zeros_like(flat).scatter(0, kept.indices, kept.values).view_as(z)
        if self.threshold is not None:
            return z.relu() * (z > self.threshold)
        return z.relu()

    def decode(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """The activation that features stand for, `[..., d_out]`.

        Args:
            features: `[..., features]`.
            x: The input, where the coder has `w_skip`.
        """
        y = features @ self.w_dec + self.b_dec
        if self.w_skip is None or x is None:
            return y
        return y + x.to(self.w_skip.dtype) @ self.w_skip


__all__ = ["SparseCoder"]
