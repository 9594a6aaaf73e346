"""A norm with its scale held fixed: the affine map that it is at one position.

```
norm(x) = gain * (x - mean(x)) / scale(x) + bias       LayerNorm; without the mean: RMSNorm
frozen  = gain * (p - mean(p)) / scale                 of a part p of x, so that parts add up
```

Nothing is read off the module's name or weights: Gemma's weight is `gain - 1`, Cohere's LayerNorm
has no bias, some have no weight. The norm is called on vectors whose scale is known, and what is
found must give what the norm gives of `x`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlm_lens.points.placement import called
from vlm_lens.stream.refusal import StreamError

_NORMS = {nn.functional.layer_norm, nn.functional.rms_norm}
_INVERSE_ROOTS = {torch.rsqrt, Tensor.rsqrt}
_POWERS = {torch.pow, Tensor.pow, Tensor.__pow__}
_LARGE = 64.0  # how much larger than a normed vector the probes are, so that epsilons vanish


@dataclass(frozen=True)
class FrozenNorm:
    """A norm at fixed scales.

    Attributes:
        gain: `[d]`.
        bias: `[d]`.
        centred: Whether the mean over the width is subtracted.
        scale: `[..., 1]`, one a position.
    """

    gain: Tensor
    bias: Tensor
    centred: bool
    scale: Tensor

    def of_part(self, part: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """What a part of the stream becomes; the bias is no part's."""
        part = part - part.mean(-1, keepdim=True) if self.centred else part
        return self.gain * part / self.scale

    def of_direction(self, direction: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The direction `w` with `<w, part> = <direction, of_part(part)>`."""
        pulled = self.gain * direction / self.scale
        return pulled - pulled.mean(-1, keepdim=True) if self.centred else pulled

    def at(self, *index: slice | Tensor) -> FrozenNorm:
        """The same at some positions."""
        return FrozenNorm(self.gain, self.bias, self.centred, self.scale[index])


@torch.no_grad()
def frozen(
    norm: Callable[[Tensor], Tensor], x: Float[Tensor, "... d"], dtype: torch.dtype | None = None
) -> FrozenNorm:
    """A norm at the scales that it has at `x`.

    Args:
        norm: The norm.
        x: What it reads.
        dtype: In which the result is; by default float64.

    Raises:
        StreamError: It is neither a LayerNorm nor an RMSNorm.
    """
    wide = dtype or torch.float64
    gain, bias, centred = _measured(norm, x, wide)
    y = called(norm, x).to(wide)
    centre = _centre(x.to(wide), centred) * gain
    change = y - bias
    scale = (centre * centre).sum(-1, keepdim=True) / (centre * change).sum(-1, keepdim=True)
    scale = torch.where(torch.isfinite(scale) & (scale != 0), scale, torch.ones_like(scale))
    found = FrozenNorm(gain, bias, centred, scale)
    allowed = max(tolerance(x.dtype), tolerance(torch.float32))  # many norms compute in float32
    if _error(found.of_part(x.to(wide)) + bias, y) > allowed:
        raise StreamError(f"{_name(norm)} is no LayerNorm or RMSNorm over the width {x.shape[-1]}.")
    return found


class HeldNorms(TorchFunctionMode):
    """While open, derivatives pass through norms as if their scales were constants.

    What a norm gives stays the same; of LayerNorm the mean is still taken off.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        power = args[1] if len(args) > 1 else kwargs.get("exponent")
        halves = func in _POWERS and isinstance(power, float) and power == -0.5
        if halves or func in _INVERSE_ROOTS:
            return out.detach()
        if func in _NORMS and out.requires_grad:
            x = args[0]
            centre = x - x.mean(-1, keepdim=True) if func is nn.functional.layer_norm else x
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            change = (out - func(torch.zeros_like(x), *args[1:], **kwargs)).detach()
            gained = centre if weight is None else centre * weight
            scale = gained.square().sum(-1, keepdim=True) / (gained * change).sum(-1, keepdim=True)
            held = gained / torch.where(torch.isfinite(scale), scale, 1).detach()
            return out.detach() + (held - held.detach())
        return out


def tolerance(dtype: torch.dtype) -> float:
    """How far numbers of two computations may be apart, relative to the largest."""
    return torch.finfo(dtype).eps ** 0.5


def _measured(
    norm: Callable[[Tensor], Tensor], x: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor, bool]:
    """Gain, bias, and whether the mean is subtracted."""
    d = x.shape[-1]
    signs = torch.ones(d, dtype=wide, device=x.device)
    signs[1::2] = -1
    other = torch.randn(d, generator=torch.Generator().manual_seed(0)).to(signs)
    probes = torch.stack([signs * 0, signs * _LARGE, other * _LARGE]).to(x.dtype)
    gave = called(norm, probes.view(3, *[1] * (x.dim() - 2), d))
    zero, plain, check = gave.to(wide).view(3, d)
    best: tuple[float, Tensor, bool] | None = None
    for centred in (False, True):
        gain = (plain - zero) / _unit(signs, centred)
        error = _error(gain * _unit(probes[2].to(wide), centred) + zero, check)
        if best is None or error < best[0]:
            best = error, gain, centred
    assert best is not None
    return best[1], zero, best[2]


def _centre(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x


def _unit(x: Tensor, centred: bool) -> Tensor:
    x = _centre(x, centred)
    return x / x.square().mean().sqrt()


def _error(found: Tensor, expected: Tensor) -> float:
    size = expected.abs().amax().clamp(min=1e-30)
    return float((found - expected).abs().amax() / size)


def _name(norm: Callable) -> str:
    return type(norm).__name__ if isinstance(norm, nn.Module) else str(norm)
