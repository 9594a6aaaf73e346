"""What a residual stream says of tokens, as a linear function of it at a fixed scale of the norm.

```
logit[t] = < W_U[t], gain * (x - mean) / scale + bias > + b_U[t]      before a soft cap
         = < direction[t], x > + constant[t]
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.families import Architecture
from vlm_lens.gradients import recording
from vlm_lens.points.placement import device_of
from vlm_lens.points.sites import submodule
from vlm_lens.stream.norm import frozen
from vlm_lens.stream.refusal import StreamError


@dataclass(frozen=True)
class Readout:
    """Logits of some tokens as a linear function of the stream.

    Attributes:
        directions: `[token, ..., d_model]`, one a position: the norm's scale is that of it.
        norm_bias: What the norm's bias adds, `[token]`.
        head_bias: What the output layer's bias adds, `[token]`.
    """

    directions: Tensor
    norm_bias: Tensor
    head_bias: Tensor

    def of(self, parts: Float[Tensor, "part ... d_model"]) -> Float[Tensor, "token part ..."]:
        """The share of each part."""
        return torch.einsum("t...d,p...d->tp...", self.directions, parts.to(self.directions))


def rows(model: nn.Module, arch: Architecture, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of the output layer, scaled as the model scales logits, and its bias.

    They are derivatives of the model's own output layer, so that any linear one will do.

    Returns:
        `[token, d_model]` and `[token]`, in float64.

    Raises:
        StreamError: Logits cannot be computed from the stream, or a token has none.
    """
    if arch.unknown_head:
        raise StreamError(
            f"{arch.cfg.model_name}: {arch.unknown_head}, so no logit can be shared out to parts."
        )
    lost = [t for t in tokens if t in arch.decoder.barred]
    if lost:
        raise StreamError(f"This model never says token {lost[0]}: its logit is barred.")
    head = submodule(model, arch.unembed)
    weight, device = next(head.parameters()), device_of(head) or model.device
    dtype = weight.dtype if weight.is_floating_point() else model.dtype
    with recording():
        at = torch.zeros(len(tokens), arch.cfg.d_model, dtype=dtype, device=device)
        at.requires_grad_()
        index = torch.tensor(list(tokens), device=at.device)
        found = head(at).gather(-1, index[:, None])[:, 0]
        (directions,) = torch.autograd.grad(found.sum(), at)
    scale = arch.decoder.logit_scale
    return directions.double() * scale, found.detach().double() * scale


def readout(
    model: nn.Module, arch: Architecture, x: Float[Tensor, "... d_model"],
    directions: Float[Tensor, "token d_model"], head_bias: Float[Tensor, " token"],
    *, apply_norm: bool = True,
) -> Readout:  # fmt: skip
    """What a stream says along directions of the output layer.

    Args:
        model: The model.
        arch: Its parts.
        x: The stream.
        directions: As `rows` gives them, or others.
        head_bias: Likewise.
        apply_norm: Whether parts go through the final norm, at the scale that it has at `x`;
            otherwise they are multiplied with the directions as they are.

    Raises:
        StreamError: The final norm is not a linear function at a fixed scale.
    """
    wide, head_bias = directions.double().to(x.device), head_bias.double().to(x.device)
    directions = wide.view(len(wide), *[1] * (x.dim() - 1), -1)
    if not apply_norm or not arch.decoder.norm:
        none = torch.zeros_like(head_bias)
        return Readout(directions.expand(-1, *x.shape), none, head_bias)
    norm = frozen(arch.final_norm(model), x)
    return Readout(norm.of_direction(directions), (wide * norm.bias).sum(-1), head_bias)
