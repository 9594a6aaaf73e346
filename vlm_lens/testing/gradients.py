"""Gradients at points against finite differences, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlm_lens.engine.firing import Handler
from vlm_lens.engine.hooks import HookedRun
from vlm_lens.errors import ModelError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.kinds import PAD
from vlm_lens.points.point import Point
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.testing.checks import CheckFailed, NotApplicable, Subject, has_plain_weights

_SINGLE = torch.float32
# Of the activation's scale: large steps see curvature, small ones rounding, so several are tried.
_STEPS = (1e-5, 1e-6, 1e-4)
_CLOSE = 1e-6
TOLERANCE = 1e-5


class _Double(TorchFunctionMode):
    """Code that asks for float32, as norms and softmaxes do, gets float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {k: _double(v) for k, v in (kwargs or {}).items()}
        if func is Tensor.float:
            func = Tensor.double
        return func(*map(_double, args), **kwargs)


def _double(value: Any) -> Any:
    return torch.float64 if value is _SINGLE else value


def in_double(vlm: HookedModel) -> HookedModel:
    """A copy of a model in float64."""
    model = copy.deepcopy(vlm.hf_model).double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped kernels have no float64
    twin = HookedModel(model, vlm.processor)
    for module in twin.hf_model.modules():  # rotary embeddings keep a copy of what they are made of
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.dtype == _SINGLE:
                setattr(module, key, value.double())
    return twin


def _inputs(prompt: Prompt) -> dict[str, Any]:
    return {k: v.double() if v.is_floating_point() else v for k, v in prompt.inputs.items()}


def _real(prompt: Prompt) -> Tensor:
    """True at positions that are not padding, `[batch, pos]`."""
    return torch.tensor([[kind != PAD for kind in layout.kinds] for layout in prompt.layouts])


def worst_gradient(
    vlm: HookedModel, prompt: Prompt, names: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """How far the gradient at each point is from a finite difference, relative to its size.

    What is differentiated is a random sum of the logits, along a random direction of the point.

    Args:
        vlm: A model in float64.
        prompt: A prompt for it.
        names: The points.
        seed: Of the random numbers.

    Returns:
        Point name -> |analytic - numeric| relative to the largest of |analytic|, |numeric|, the
        norm of the gradient (which is what a random direction gives on average) and 1e-6 of the
        largest of all points.
    """
    source = torch.Generator().manual_seed(seed)
    inputs = _inputs(prompt)
    real = _real(prompt)
    weights: list[Tensor] = []

    def objective(handlers: Mapping[str, Sequence[Handler]], grad: bool = False) -> Tensor:
        model, points = vlm.hf_model, vlm.architecture.points
        with _Double(), torch.set_grad_enabled(grad), HookedRun(model, points, handlers):
            logits = model(**inputs, use_cache=False).logits
        if not weights:
            noise = torch.randn(logits.shape, generator=source, dtype=torch.float64)
            weights.append((noise * real[..., None]).to(logits.device))
        usual = logits.abs() < 1e30  # some models bar tokens by the lowest number there is
        return torch.where(usual, logits * weights[0], 0).sum()

    seen: dict[str, Tensor] = {}

    def keep(x: Tensor, firing: Any) -> None:
        seen[firing.point.name] = x

    total = objective({name: [Handler(keep, writes=False)] for name in names}, grad=True)
    found = torch.autograd.grad(total, [seen[n] for n in names], allow_unused=True)
    points = {}
    for name, gradient in zip(names, found, strict=True):
        x = seen[name].detach()
        read = _read(real, vlm.architecture.points[name], x.shape[-1])
        points[name] = _Derivative(x, gradient, source, read)
    least = 1e-6 * max(one.norm for one in points.values())
    worst = {}
    for name, one in points.items():
        for step in _STEPS:
            numeric = _slope(objective, name, one.direction, step * one.scale)
            size = max(abs(one.analytic), abs(numeric), one.norm, least)
            error = abs(one.analytic - numeric) / size if size else 0.0
            worst[name] = min(error, worst.get(name, error))
            if worst[name] < _CLOSE:
                break
    return worst


def _read(real: Tensor, point: Point, n_keys: int) -> Tensor | None:
    """True where a text model's activation is not that of padding, whose values say nothing."""
    if point.space != "text":
        return None
    if "query" in point.axes:
        queries = real[:, None, :, None]
        return queries if n_keys != real.shape[1] else queries & real[:, None, None, :]
    return real.view(*real.shape, *[1] * (len(point.axes) - 2))


class _Derivative:
    """The gradient at a point, along a random direction."""

    def __init__(
        self, x: Tensor, gradient: Tensor | None, source: torch.Generator, read: Tensor | None
    ):
        usual = x.abs() < 1e30  # scores of keys that are not seen
        usual = usual if read is None else usual & read.to(x.device)
        self.direction = torch.randn(x.shape, generator=source, dtype=torch.float64).to(x) * usual
        self.scale = float(torch.where(usual, x, 0).square().mean().sqrt()) or 1.0
        gradient = torch.zeros_like(x) if gradient is None else gradient
        self.analytic = float((gradient * self.direction).sum())
        self.norm = float((gradient * usual).norm())


def _slope(objective: Callable[..., Tensor], name: str, direction: Tensor, step: float) -> float:
    ends = [
        objective({name: [Handler(lambda x, firing, s=sign: x + s * step * direction)]})
        for sign in (1, -1)
    ]
    return float(ends[0] - ends[1]) / (2 * step)


def gradients_are_right(subject: Subject) -> str:
    """The gradient at every point is that of a finite difference, on a copy in float64.

    Weights get the gradients that they get in a plain run.
    """
    model = subject.vlm.hf_model
    if not subject.cold:
        raise NotApplicable("it takes a copy of the model (cold=True)")
    if not has_plain_weights(model):
        raise NotApplicable("weights that are quantised or offloaded have no copy in float64")
    try:
        twin = in_double(subject.vlm)
    except ModelError as error:  # its parts are found by running it
        raise NotApplicable("this model does not run in float64") from error
    worst = worst_gradient(twin, subject.prompt, subject.names)
    wrong = [name for name, error in worst.items() if not error <= TOLERANCE]
    if wrong:  # what is wrong at one point is wrong at all before it
        raise CheckFailed(
            f"the gradient at {wrong[-1]} is off by {worst[wrong[-1]]:.2g} of its size"
            + (f", and so at {len(wrong) - 1} points before it" if wrong[1:] else "")
        )
    _check_weights(twin, subject.prompt, subject.names)
    return f"{len(worst)} points, off by {max(worst.values()):.1g} of their size at most"


def _check_weights(vlm: HookedModel, prompt: Prompt, names: Sequence[str]) -> None:
    reader = Handler(lambda x, firing: None, writes=False)
    found = [
        _weight_gradients(vlm, prompt, handlers)
        for handlers in ({}, {name: [reader] for name in names})
    ]
    plain, read = found
    for name, gradient in plain.items():
        error = float((gradient - read.get(name, 0)).abs().max())
        if not error <= TOLERANCE * max(float(gradient.abs().max()), 1e-9):
            raise CheckFailed(f"reading every point changes the gradient of {name} by {error:.2g}")


def _weight_gradients(
    vlm: HookedModel, prompt: Prompt, handlers: Mapping[str, Sequence[Handler]]
) -> dict[str, Tensor]:
    model = vlm.hf_model
    with _Double(), torch.enable_grad(), HookedRun(model, vlm.architecture.points, handlers):
        logits = model(**_inputs(prompt), use_cache=False).logits
    usual = (logits.abs() < 1e30) & _real(prompt).to(logits.device)[..., None]
    torch.where(usual, logits, 0).square().mean().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
