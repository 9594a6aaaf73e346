"""What a model does between its final norm and its logits, found by asking it.

Some models multiply what their output layer gives, some cap it by `c * tanh(x / c)`, and a config
may name either though the model that holds it applies none. So the model's own code is run on
vectors that stand in for its final norm's output, and what comes out is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.stand_ins import standing_in
from vlm_lens.families import Architecture
from vlm_lens.points.placement import called, device_of
from vlm_lens.points.sites import OutputSite, submodule

_LARGE = 30.0  # how much larger than a normed vector: a cap is seen where logits are large
_BARRED = 1e30  # logits beyond this are of tokens that the model bars


class _FinalState:
    """What a text model returns, as far as the model around it reads it."""

    def __init__(self, x: Tensor):
        self.last_hidden_state = x

    def __getitem__(self, item: Any) -> Any:
        return self.last_hidden_state if item in (0, "last_hidden_state") else ()

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@torch.no_grad()
def with_fitted_head(model: nn.Module, arch: Architecture) -> Architecture:
    """The architecture, with the scale and the cap of logits that the model applies.

    Where neither explains its logits, `unknown_head` says so, and logits are refused. A model whose
    code cannot be run in this way (its weights are not there) is left as its config says.
    """
    probe = None if arch.unknown_head else _probe(model, arch)
    if probe is None:
        return arch
    x, expected = probe
    for candidate in _candidates(model, arch, x, expected):
        if logits_error(candidate.logits(model, x), expected) <= tolerance(x.dtype):
            return candidate
    return replace(
        arch,
        unknown_head="its logits are not what its output layer gives, scaled or capped",
    )


def tolerance(dtype: torch.dtype) -> float:
    """How far logits of one computation may be from those of another, of their scale."""
    return torch.finfo(dtype).eps ** 0.5


def head_error(arch: Architecture, model: nn.Module, resid: Tensor, logits: Tensor) -> float:
    """How far norm and output layer are from the model's logits, of the scale of these.

    Args:
        arch: The model's parts.
        model: The model.
        resid: What leaves the last block, `[..., d_model]`.
        logits: The model's logits there, `[..., d_vocab]`.
    """
    return logits_error(arch.logits(model, called(arch.final_norm(model), resid)), logits)


def logits_error(found: Tensor, expected: Tensor) -> float:
    """How far logits are from others, of the scale of these; those of barred tokens left out."""
    found = found.to(expected.device)  # a model over several devices may have moved its logits
    usual = expected.abs() < _BARRED
    if not torch.equal(usual, found.abs() < _BARRED):
        return float("inf")
    expected = torch.where(usual, expected.float(), 0.0)
    found = torch.where(usual, found.float(), 0.0)
    scale = expected.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return float(((found - expected).abs() / scale).max())


def _probe(model: nn.Module, arch: Architecture) -> tuple[Tensor, Tensor] | None:
    """Vectors in place of the final norm's output, and the logits that the model makes of them."""
    site = arch.points["hook_logits"].site
    entry = site.module if isinstance(site, OutputSite) else ""
    text_path = arch.decoder.stack.path.removeprefix(entry).strip(".").split(".")[:-1]
    paths = [".".join(filter(None, (entry, *text_path[: i + 1]))) for i in range(len(text_path))]
    head = submodule(model, arch.unembed)
    device = device_of(head)
    if device is None or not paths:
        return None
    source = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, arch.cfg.d_model, generator=source)
    x[:, 2:] *= _LARGE
    x = x.to(device, model.dtype)
    given = {submodule(model, path): lambda: _FinalState(x) for path in paths}
    ids = torch.ones(1, 4, dtype=torch.long, device=device)
    try:
        head(x)
        with standing_in(given):  # its forward itself: no hook of others, no compiled code
            logits = (
                submodule(model, entry)
                .forward(input_ids=ids, attention_mask=ids, use_cache=False, return_dict=True)
                .logits
            )
    except Exception:  # noqa: BLE001  code that reads more of its text model's output
        return None
    if not isinstance(logits, Tensor):
        return None
    return (x, logits) if logits.shape == (*x.shape[:2], arch.cfg.d_vocab) else None


def _candidates(
    model: nn.Module, arch: Architecture, x: Tensor, expected: Tensor
) -> Iterator[Architecture]:
    """The architecture as its config has it, then with other scales and caps."""
    yield arch
    config = model.config.get_text_config(decoder=True)
    caps = [None, arch.decoder.logit_softcap, getattr(config, "final_logit_softcapping", None)]
    named = [getattr(config, n, None) for n in ("logit_scale", "logits_scaling", "logits_scale")]
    scales = [1.0, *(s for value in named if value for s in (float(value), 1.0 / value))]
    for cap in dict.fromkeys(caps):
        for scale in dict.fromkeys((*scales, _fitted_scale(model, arch, x, expected, cap))):
            decoder = replace(arch.decoder, logit_scale=scale, logit_softcap=cap)
            yield replace(arch, decoder=decoder)


def _fitted_scale(
    model: nn.Module, arch: Architecture, x: Tensor, expected: Tensor, cap: float | None
) -> float:
    """The scale that explains the logits best, where a normed vector's stand (rows 0 and 1)."""
    raw = called(submodule(model, arch.unembed), x)[:, :2].double()
    wanted = expected[:, :2].double().to(raw.device)
    usual = wanted.abs() < _BARRED
    if cap is not None:
        wanted = cap * torch.atanh((wanted / cap).clamp(-0.999999, 0.999999))
    raw, wanted = raw[usual], wanted[usual]
    return float((raw * wanted).sum() / (raw * raw).sum().clamp(min=1e-30))
