"""Gradients between two prompts: at the one, or along the straight line from it to the other.

```
base run            input x'                    gradient:  d(measure)/d(point) at x'
between    x(a) = x' + a (x - x')               ig:        its mean over a in (0, 1)
```

The line is drawn where everything that a model reads has become vectors: `hook_merged`, with
DeepStack's features and the states that cross-attention reads; token embeddings alone would leave
pictures out. Of an encoder-decoder it is both what the encoder and what the decoder reads. For
points of the tower it begins at pixels and token embeddings. The mean is taken by Gauss-Legendre
quadrature, which needs fewer steps for the same error than equal ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.gradients import gradients_at, recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.position_map import PositionMap
from vlm_lens.measures.base import BoundLogits, Measure, at_last
from vlm_lens.prompts.prompt import Prompt

PIXELS = "pixel_values"
_MOST_OFF = 0.1  # of the difference, before a user is warned
AtEach = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Line:
    """The straight line from one prompt's input to another's.

    Attributes:
        names: The points at which it is drawn.
        pixels: Whether pixels are interpolated, too.
    """

    names: tuple[str, ...]
    pixels: bool = False


def line_of(vlm: HookedModel, space: str) -> Line:
    """Where a line between two inputs is drawn, for points of a space.

    Raises:
        AttributionError: The model has no such points.
    """
    points = vlm.architecture.points
    if space not in ("text", "encoder"):
        if "hook_embed" not in points:
            raise AttributionError(
                "This model has no hook_embed, so there is no line to points of its tower: "
                "take method='gradient'."
            )
        return Line(("hook_embed",), pixels=True)
    names = ["hook_merged", *(n for n in points if n.startswith("projector.deepstack."))]
    if "encoder.hook_merged" in points:
        names.append("encoder.hook_merged")
    if any(p.pictures_only and p.space == "text" for p in points.values()):
        names.append("projector.hook_out")
    return Line(tuple(names))


def bound_to(vlm: HookedModel, prompt: Prompt, measure: Measure) -> BoundLogits:
    """A measure on a prompt, which gives a number with a gradient.

    Raises:
        AttributionError: It gives none.
    """
    bound = measure.bind(vlm, prompt)
    if not isinstance(bound, BoundLogits) or not measure.differentiable:
        raise AttributionError(
            f"{type(measure).__name__} has no gradient: take LogitDiff, LogProb, Prob or KL."
        )
    return bound


@torch.no_grad()
def read(
    vlm: HookedModel, prompt: Prompt, names: Sequence[str], bound: BoundLogits
) -> tuple[dict[str, Tensor], float]:
    """Some points of a plain run, and the measure."""
    wanted = set(names)
    logits, cache = vlm.run_with_cache(prompt, names_filter=lambda n: n in wanted)
    value = bound.values(at_last(logits, prompt.layouts, bound.n_last)).sum()
    return dict(cache), float(value)


def gradients(
    vlm: HookedModel,
    prompt: Prompt,
    names: Sequence[str],
    bound: BoundLogits,
    hooks: Sequence[tuple[str, Callable]] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Gradients of the measure at some points, their values, and the measure itself."""
    wanted = set(names)
    with recording(), vlm.hooks(list(hooks)):
        logits, cache = vlm.run_with_cache(
            prompt, names_filter=lambda n: n in wanted, grad=True, last_logits=None
        )
        value = bound.values(at_last(logits, prompt.layouts, bound.n_last)).sum()
        points = dict(cache)
        found = gradients_at(value, list(points.values()), logits)
    given = dict(zip(points, found, strict=True))
    return given, {name: x.detach() for name, x in points.items()}, float(value.detach())


@dataclass(frozen=True)
class Between:
    """What was found between a base run and another one.

    Attributes:
        gradients: Point -> gradient at the base run, or its mean along the line.
        here: Point -> value in the base run.
        there: Point -> value in the other run.
        value: The measure of the base run.
        other: That of the other run.
        gap: Of a line, how far what it adds up to is from the difference of both, of that.
    """

    gradients: Mapping[str, Tensor]
    here: Mapping[str, Tensor]
    there: Mapping[str, Tensor]
    value: float
    other: float
    gap: float | None = None

    def told(self) -> str:
        """How far the line is off; warns if much."""
        return off_by(self.gap or 0.0, "the two prompts", "take more steps.", stacklevel=5)


def off_by(share: float, whole: str, advice: str, *, stacklevel: int) -> str:
    """How far a line is off, in words; a warning comes where that is more than a tenth.

    Args:
        share: Of the difference.
        whole: Between which two the difference is.
        advice: What to do.
        stacklevel: That of the caller's warning.
    """
    said = f"{share:.1g} of the difference"
    if share > _MOST_OFF:
        warnings.warn(
            f"Integrated gradients should add up to what lies between {whole}, and are off by "
            f"{said}: {advice}",
            stacklevel=stacklevel + 1,
        )
    return said


def between(
    vlm: HookedModel,
    base: Prompt,
    other: Prompt,
    names: Sequence[str],
    measure: Measure,
    positions: PositionMap,
    *,
    steps: int | None,
    space: str = "text",
    at_each: AtEach | None = None,
) -> Between:
    """Gradients at a base prompt, or along the line from it to another.

    Args:
        vlm: The model.
        base: The prompt that runs.
        other: The prompt whose activations would be put into it.
        names: The points.
        measure: The measure, of the base prompt.
        positions: Which position of the base stands for which of the other.
        steps: Points of the line; `None` for the gradient at the base.
        space: Whose positions the points count.
        at_each: `(gradients, values)` of one run -> what is added up in place of the gradients.

    Raises:
        AttributionError: No gradient, or no line between prompts of different lengths.
    """
    bound = bound_to(vlm, base, measure)
    at_other = bound_to(vlm, other, measure)
    if steps is None:
        there, far = read(vlm, other, names, at_other)
        found, here, value = gradients(vlm, base, names, bound)
        return Between(at_each(found, here) if at_each else found, here, there, value, far)
    line = line_of(vlm, space)
    lengths = [len(p.layout.encoder or p.layout) for p in (base, other)]
    if not positions.is_whole or len(base.layout) != len(other.layout) or len(set(lengths)) > 1:
        raise AttributionError(
            "Integrated gradients need a counterpart of every position, and these prompts have "
            f"{lengths[0]} and {lengths[1]} positions: take prompts of one shape, or "
            "method='gradient'."
        )
    if line.pixels and _shape(base) != _shape(other):
        raise AttributionError(
            f"The pictures have tensors of shapes {_shape(base)} and {_shape(other)}: resize them "
            "to one size, or take method='gradient'."
        )
    every = [*dict.fromkeys([*names, *line.names])]
    there, far = read(vlm, other, every, at_other)
    here, value = read(vlm, base, every, bound)
    change = {n: there[n] - here[n] for n in line.names if n in here}
    total: dict[str, Tensor] = {}
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        hooks = [(n, _moved(here[n], change[n], float(node))) for n in change]
        prompt = _between_pixels(base, other, float(node)) if line.pixels else base
        one, values, _ = gradients(vlm, prompt, every, bound, hooks)
        for name, gradient in (one | (at_each(one, values) if at_each else {})).items():
            total[name] = total.get(name, 0) + float(weight) * gradient
    gap = None
    if not line.pixels and far != value:
        added = sum(float((total[n].double() * change[n].double()).sum()) for n in change)
        gap = abs(added - (far - value)) / abs(far - value)
    return Between(total, here, there, value, far, gap)


def _moved(here: Tensor, change: Tensor, share: float) -> Callable:
    # a leaf of its own, because what is written is what the gradient is asked of
    return lambda x, hook: (here + share * change).requires_grad_()


def _between_pixels(base: Prompt, other: Prompt, share: float) -> Prompt:
    here, there = (p.inputs.get(PIXELS) for p in (base, other))
    if here is None:
        return base
    moved = here + share * (there - here)
    return replace(base, inputs={**base.inputs, PIXELS: moved})


def _shape(prompt: Prompt) -> list[int]:
    return list(prompt.inputs[PIXELS].shape) if PIXELS in prompt.inputs else []
