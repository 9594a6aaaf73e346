"""What one answer hangs on in one prompt: gradient x input, and integrated gradients, by token.

```
score[t, p] = ( x[p] - baseline[p] ) . d logit(token t) / dx[p]         gradient at x, or its mean
              on the way from the baseline to x (method="ig", Sundararajan et al. 2017)
```

for the merged embeddings (text and patches together, which token embeddings or pixels alone are
not), for pixels by patch of the tower, or for any point with positions. Every token of the answer
has scores of its own, read with the answer before it. What is differentiated is its logit; its log
probability (`of="logprob"`) has hardly a gradient where the model is sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_lens.attribution.between import PIXELS, off_by
from vlm_lens.attribution.pixel_patches import packed, side_of
from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.engine.continuing import followed_by
from vlm_lens.gradients import gradients_at, recording
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.integers import as_integer
from vlm_lens.measures.answers import answer_ids
from vlm_lens.prompts.maker import Pictures, Promptable
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.scores.places import sequence
from vlm_lens.scores.scores import Scores, scores
from vlm_lens.tokens import string_token

METHODS = {"gradient": "gradient x input", "ig": "integrated gradients"}
BASELINES = ("mean", "zero")
OF = ("logit", "logprob")
STEPS = 16


def attribute_inputs(
    vlm: HookedModel,
    prompt: Promptable,
    images: Pictures = None,
    *,
    answer: str | int | Sequence[int] | None = None,
    to: str = "patches",
    method: str = "gradient",
    steps: int = STEPS,
    baseline: str = "mean",
    of: str = "logit",
) -> Scores:
    """What each token of an answer hangs on.

    Args:
        vlm: The model.
        prompt: One prompt: a Prompt of one row, text, or a processor's output.
        images: Pictures, where `prompt` is text.
        answer: A text, a token id or several; the model's most likely next token by default.
        to: `"patches"` (merged embeddings: patches and text tokens; of an encoder-decoder those
            that its encoder reads), `"pixels"` (summed over each patch of the tower), or a point
            with positions, such as `"projector.hook_out"`.
        method: `"gradient"` or `"ig"`.
        steps: Of `"ig"`. Scores should add up to what lies between baseline and input; `about`
            says how far they are from it, and a warning comes where that is more than a tenth.
        baseline: From which `x` is counted: `"mean"`, of each picture's own patches (text is left
            as it is, and has no scores), or `"zero"`, everywhere.
        of: `"logit"` or `"logprob"`: what is differentiated.

    Returns:
        Scores by `position`, and by `token` where the answer has several.

    Raises:
        VLMLensError: Something does not fit the model or the prompt.
    """
    for given, known, what in (
        (method, METHODS, "method"), (baseline, BASELINES, "baseline"), (of, OF, "of"),
    ):  # fmt: skip
        if given not in known:
            raise AttributionError(
                f"{what} is one of {', '.join(map(repr, known))}, not {given!r}."
            )
    n_steps = as_integer(steps, "steps", AttributionError) if method == "ig" else 1
    if n_steps < 1:
        raise AttributionError(f"steps is at least 1, not {steps}.")
    prompt = vlm.as_prompt(prompt, images)
    if len(prompt) != 1:
        raise AttributionError(f"One prompt is attributed at a time; this is {len(prompt)} rows.")
    tokens = _tokens(vlm, prompt, answer)
    target = _Target(
        vlm, _grown(vlm, prompt, tokens[:-1]), prompt.layout.last, tokens, of == "logprob"
    )
    name = {"patches": _merged(vlm), "pixels": PIXELS}.get(to, to)
    source = _Pixels(target) if name == PIXELS else _Points(target, name)
    start = source.baseline(prompt, baseline)
    total = 0.0
    for share, weight in _nodes(method, n_steps):
        total = total + weight * source.gradients(start, share)
    values = source.by_position(prompt, total, start)  # [token, position]
    pairs = sequence(prompt.layout, source.space)
    if len(pairs) != values.shape[1]:
        raise AttributionError(
            f"{to} has {values.shape[1]} positions, and the layout of this prompt knows "
            f"{len(pairs)}: take to='patches'."
        )
    strings = [_string(vlm, t) for t in tokens]
    axes: dict[str, Any] = {"token": [f"{i} {s}" for i, s in enumerate(strings)]}
    about = {
        "method": METHODS[method], "model": vlm.name, "to": name, "baseline": baseline,
        "of": of, "answer": "".join(strings),
    }  # fmt: skip
    if method == "ig":
        about["steps"] = n_steps
        about["the line is off by"] = _off(source, start, values)
    if len(tokens) == 1:
        values, axes = values[0], {}
    return scores(
        values, {**axes, "position": [p for _, p in pairs]},
        None if source.space == "text" else [r for r, _ in pairs],
        name="attribution", layout=prompt.layout, space=source.space, about=about,
        pictures=prompt.images[0] if prompt.images else (),
    )  # fmt: skip


def _merged(vlm: HookedModel) -> str:
    """Where text and patches stand together: what the encoder reads, where there is one."""
    name = "encoder.hook_merged"
    return name if name in vlm.architecture.points else "hook_merged"


def _nodes(method: str, steps: int) -> Iterator[tuple[float, float]]:
    """Where on the way from the baseline gradients are taken, and their weights."""
    if method == "gradient":
        yield 1.0, 1.0
        return
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    yield from zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True)


def _off(source: _Points | _Pixels, start: Any, values: np.ndarray) -> str:
    """How far scores, which should add up to it, are from what the way changes; warns if much."""
    try:
        change = (source.measured(start, 1.0) - source.measured(start, 0.0)).double().cpu().numpy()
    except RuntimeError:  # zero pixels are no picture to Idefics2
        return "not known: the model does not run at the baseline"
    off = np.abs(values.sum(-1) - change) / np.maximum(np.abs(change), 1e-12)
    return off_by(
        off.max(), "the baseline and the input",
        "take more steps. Near baseline='zero' a norm turns on the first bit of input, which no "
        "number of steps follows; baseline='mean' does not.", stacklevel=5,
    )  # fmt: skip


def _tokens(
    vlm: HookedModel, prompt: Prompt, answer: str | int | Sequence[int] | None
) -> list[int]:
    if answer is None:
        return [int(vlm.run(prompt)[0, prompt.layout.last].argmax())]
    given = answer if isinstance(answer, str | int) else tuple(answer)
    return answer_ids(vlm, given)


def _string(vlm: HookedModel, token: int) -> str:
    return string_token(vlm.tokenizer, token) if vlm.tokenizer is not None else f"#{token}"


def _grown(vlm: HookedModel, prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """The prompt with tokens after it."""
    if not tokens:
        return prompt
    if prompt.layout.last != len(prompt.layout) - 1:
        raise AttributionError("This prompt is padded on the right: make it without padding.")
    return vlm.as_prompt(followed_by(vlm.hf_model, vlm.architecture.ids, prompt.inputs, tokens))


@dataclass(frozen=True)
class _Target:
    """Logits, or log probabilities, of the answer's tokens, each read at the position before it."""

    vlm: HookedModel
    prompt: Prompt
    last: int
    tokens: Sequence[int]
    logprob: bool

    def of(self, logits: Tensor) -> Tensor:
        """`[token]`."""
        wanted = torch.tensor(self.tokens, device=logits.device)
        here = logits[0, self.last : self.last + len(self.tokens)].float()
        here = here.log_softmax(-1) if self.logprob else here
        return here.gather(-1, wanted[:, None])[:, 0]

    def gradients(self, logits: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """For each input, `[token, ...]`."""
        each = [gradients_at(one, inputs, logits, again=True) for one in self.of(logits)]
        return [torch.stack(found) for found in zip(*each, strict=True)]


class _Points:
    """Gradients at a point and, for merged embeddings, at DeepStack's features."""

    def __init__(self, target: _Target, name: str):
        points = target.vlm.architecture.points
        self._target, self.space = target, points[name].space
        if points[name].axes[1:2] != ("pos",) or points[name].has_heads:
            raise AttributionError(f"{name} has no vector a position ({points[name].shape}).")
        self._names = [points[name].name]
        if name == "hook_merged":
            self._names += [n for n in points if n.startswith("projector.deepstack.")]
        wanted = set(self._names)
        with torch.no_grad():
            _, cache = target.vlm.run_with_cache(target.prompt, names_filter=lambda n: n in wanted)
        self._values = dict(cache)

    def baseline(self, prompt: Prompt, how: str) -> dict[str, Tensor]:
        """Where each value begins."""
        if how == "zero":
            return {name: torch.zeros_like(x) for name, x in self._values.items()}
        if not prompt.layout.images:
            raise AttributionError("This prompt has no picture: take baseline='zero'.")
        start = {name: x.clone() for name, x in self._values.items()}
        for name, x in start.items():
            space = self._target.vlm.architecture.points[name].space
            layout, space = prompt.layout.counted(space)
            for image in layout.images:
                cells = _patches(image, space)
                if not cells:
                    continue
                rows, positions = (list(i) for i in zip(*cells, strict=True))
                x[rows, positions] = x[rows, positions].mean(0)
        if all(torch.equal(x, self._values[name]) for name, x in start.items()):
            raise AttributionError(
                f"The mean over each picture's positions of {self._names[0]} is what stands there "
                "already, where a picture has one position or none, so every score would be 0: "
                "take to='projector.hook_out', or baseline='zero'."
            )
        return start

    def _moved(self, start: dict[str, Tensor], share: float) -> list[tuple[str, Callable]]:
        def put(name: str) -> Callable:
            value = start[name] + share * (self._values[name] - start[name])
            return lambda x, hook: value.clone().requires_grad_(torch.is_grad_enabled())

        return [(name, put(name)) for name in self._values]

    @torch.no_grad()
    def measured(self, start: dict[str, Tensor], share: float) -> Tensor:
        """What is differentiated, at a share of the way, `[token]`."""
        with self._target.vlm.hooks(self._moved(start, share)):
            return self._target.of(self._target.vlm.run(self._target.prompt))

    def gradients(self, start: dict[str, Tensor], share: float) -> _Sums:
        """At a share of the way."""
        vlm, wanted = self._target.vlm, set(self._values)
        with recording(), vlm.hooks(self._moved(start, share)):
            logits, cache = vlm.run_with_cache(
                self._target.prompt, names_filter=lambda n: n in wanted, grad=True
            )
            found = self._target.gradients(logits, list(cache.values()))
        return _Sums(dict(zip(cache, found, strict=True)))

    def by_position(self, prompt: Prompt, total: _Sums, start: dict[str, Tensor]) -> np.ndarray:
        """`[token, position]`."""
        sums = {
            name: (gradient.double() * (self._values[name] - start[name]).double()).sum(-1)
            for name, gradient in total.values.items()
        }  # [token, row, position]
        pairs = sequence(prompt.layout, self.space)
        found = torch.stack([sums[self._names[0]][:, r, p] for r, p in pairs], 1)
        place = {p: i for i, (_, p) in enumerate(pairs)}
        for name in self._names[1:]:
            for image in prompt.layout.images:
                cells = zip(_patches(image, "projector"), _patches(image, "text"), strict=True)
                for (row, here), (_, there) in cells:
                    found[:, place[there]] += sums[name][:, row, here].to(found.device)
        return found.cpu().numpy()


class _Pixels:
    """Gradients at pixels, summed over each patch of the tower."""

    space = "vision"

    def __init__(self, target: _Target):
        self._target = target
        if PIXELS not in target.prompt.inputs:
            raise AttributionError("This prompt has no picture, so no pixels.")
        self._pixels = target.prompt.inputs[PIXELS]
        if self._pixels.dim() == 5:  # rows of several frames
            self._frames = self._pixels.flatten(0, 1)
        else:
            self._frames = self._pixels
        if self._frames.dim() not in (2, 4):
            raise AttributionError(
                f"Pixels of shape {list(self._pixels.shape)} are not told apart by patch: take "
                "to='patches'."
            )

    def baseline(self, prompt: Prompt, how: str) -> Tensor:
        """Where pixels begin: 0, the mean color of the training data, or each frame's mean."""
        if how == "zero":
            return torch.zeros_like(self._pixels)
        if self._frames.dim() == 2:
            sizes = [len(order) for order in packed(prompt)] or [len(self._pixels)]
            each = self._pixels.split(sizes)
            return torch.cat([x.mean(0, keepdim=True).expand_as(x) for x in each])
        return self._pixels.mean((-2, -1), keepdim=True).expand_as(self._pixels)

    def gradients(self, start: Tensor, share: float) -> _Sums:
        """At a share of the way."""
        prompt = self._at(start, share)
        x = prompt.inputs[PIXELS].requires_grad_()
        with recording():
            logits = self._target.vlm.run(prompt, grad=True)
            (found,) = self._target.gradients(logits, [x])
        return _Sums({PIXELS: found})

    @torch.no_grad()
    def measured(self, start: Tensor, share: float) -> Tensor:
        """What is differentiated, at a share of the way, `[token]`."""
        return self._target.of(self._target.vlm.run(self._at(start, share)))

    def _at(self, start: Tensor, share: float) -> Prompt:
        x = (start + share * (self._pixels - start)).detach()
        return replace(self._target.prompt, inputs={**self._target.prompt.inputs, PIXELS: x})

    def by_position(self, prompt: Prompt, total: _Sums, start: Tensor) -> np.ndarray:
        """`[token, position]`; places that hold no patch (class tokens) have 0."""
        product = total.values[PIXELS].double() * (self._pixels - start).double()
        size = self._target.vlm.cfg.vision
        if size is None:
            raise AttributionError("This model's tower has no points: take to='patches'.")
        pairs = sequence(prompt.layout, self.space)
        most = max(p for _, p in pairs) + 1
        if self._frames.dim() == 2:  # patches one after the other
            by_patch = product.sum(-1)[:, None]
            order = [position for image in packed(prompt) for position in image]
            if order:  # where the tower reads them
                by_patch = by_patch.index_copy(2, torch.tensor(order).to(by_patch.device), by_patch)
        else:
            frames = product.reshape(len(product), *self._frames.shape)
            side = side_of(frames.shape[-2:], most - size.n_class_tokens, size.patch_size)
            rows, cols = (n // side for n in frames.shape[-2:])
            cut = frames[..., : rows * side, : cols * side]
            cells = cut.unflatten(-1, (cols, side)).unflatten(-3, (rows, side))
            by_patch = cells.sum((-1, -3, 2)).flatten(-2)  # [token, frame, patch]
        n_class = size.n_class_tokens
        if most != by_patch.shape[-1] + n_class:
            raise AttributionError(
                f"The tower has {most} positions and the pixels {by_patch.shape[-1]} patches, so "
                "they cannot be matched: take to='patches'."
            )
        found = torch.zeros(len(product), len(pairs), dtype=torch.float64)
        for i, (row, position) in enumerate(pairs):
            if position >= n_class:
                found[:, i] = by_patch[:, row, position - n_class]
        return found.numpy()


@dataclass(frozen=True)
class _Sums:
    """Gradients by name, which add up and are weighted."""

    values: dict[str, Tensor]

    def __rmul__(self, weight: float) -> _Sums:
        return _Sums({k: weight * v for k, v in self.values.items()})

    def __radd__(self, other: _Sums | float) -> _Sums:
        if not isinstance(other, _Sums):
            return self
        return _Sums({k: other.values[k] + v for k, v in self.values.items()})

    def __add__(self, other: _Sums) -> _Sums:
        return other.__radd__(self)


def _patches(image: Any, space: str) -> list[tuple[int, int]]:
    """(row, position) of a picture's patches in a space; of all its positions without a grid."""
    found = image.space(space)
    if found.grids:
        return [(grid.row, p) for grid in found.grids for p in grid.positions]
    return [(row, p) for row, positions in found.sequences for p in positions]
