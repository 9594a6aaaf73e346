"""The checks of the conformance suite; each compares with plain Hugging Face or a closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.engine.attention import check_supported
from vlm_lens.engine.firing import Handler
from vlm_lens.engine.hooks import HookedRun, count_hooks
from vlm_lens.errors import PointError
from vlm_lens.hooked.cache import ActivationCache
from vlm_lens.layout.kinds import PAD
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.points.point import Point
from vlm_lens.points.sites import submodule
from vlm_lens.prompts.prompt import Prompt


class CheckFailed(Exception):
    """A check that does not hold; the message says where."""


class NotApplicable(Exception):
    """A check that says nothing about this model; the message says why."""


@dataclass
class Subject:
    """A model and a prompt under test.

    Attributes:
        vlm: The HookedVLM.
        prompt: The prompt.
        cold: Whether a copy of the model may be made, to test it as if it had never run.
    """

    vlm: HookedVLM
    prompt: Prompt
    cold: bool = True
    _cold_model: nn.Module | None = field(default=None, repr=False)

    @cached_property
    def plain(self) -> Tensor:
        """The logits of the Hugging Face model itself."""
        with torch.no_grad():
            return self.vlm.hf_model(**self.prompt.inputs, use_cache=False).logits

    @cached_property
    def plain_recorded(self) -> Tensor:
        """The same where gradients are recorded, for which sdpa may take another kernel."""
        with torch.enable_grad():
            return self.vlm.hf_model(**self.prompt.inputs, use_cache=False).logits.detach()

    @cached_property
    def cache(self) -> ActivationCache:
        """Every activation that this prompt computes."""
        return self.vlm.run_with_cache(self.prompt, names_filter=self.names)[1]

    @cached_property
    def has_images(self) -> bool:
        """Whether the prompt holds a picture."""
        return any(layout.images for layout in self.prompt.layouts)

    @cached_property
    def names(self) -> list[str]:
        """The points that should fire on this prompt."""
        table = self.vlm.architecture.points
        names = []
        for name, point in table.items():
            if point.on_demand and not _forms_patterns(self.vlm.hf_model, point):
                continue
            if self.has_images or not point.needs_pictures:
                names.append(name)
        return names

    @cached_property
    def mask(self) -> Tensor:
        """True at positions that are not padding, `[batch, pos]`."""
        return torch.tensor(
            [[kind != PAD for kind in layout.kinds] for layout in self.prompt.layouts]
        )

    def write(self, name: str, change: Callable[[Tensor], Tensor], *, cold: bool) -> Tensor:
        """The logits when one activation is replaced, whether or not it may be."""
        model = self.cold_model() if cold else self.vlm.hf_model
        handlers = {name: [Handler(lambda x, firing: change(x))]}
        with torch.no_grad(), HookedRun(model, self.vlm.architecture.points, handlers):
            return model(**self.prompt.inputs, use_cache=False).logits

    def cold_model(self) -> nn.Module:
        """A copy without the hooks that transformers keeps after a model's first run."""
        if self._cold_model is None:
            self._cold_model = copy.deepcopy(self.vlm.hf_model)
        for module in self._cold_model.modules():
            module.__dict__.pop("_output_capturing_hooks_installed", None)
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__name__", "") == "output_capturing_hook":
                    del module._forward_hooks[key]
        return self._cold_model


def _tolerance(subject: Subject, usual: float) -> float:
    """A relative tolerance, wider where the model computes in half precision."""
    return max(usual, 4 * torch.finfo(subject.plain.dtype).eps)


def has_plain_weights(model: nn.Module) -> bool:
    """Whether weights are neither quantised nor offloaded, so that they can be cast or learned."""
    return all(p.is_floating_point() and not p.is_meta for p in model.parameters())


def _forms_patterns(model: nn.Module, point: Point) -> bool:
    try:
        check_supported(submodule(model, point.site.module), point.name)
    except PointError:
        return False
    return True


def _noise(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator).to(x)
    scale = x.float().std() if torch.isfinite(x.float()).all() and x.abs().max() < 1e4 else 1.0
    return x + noise * scale


def forward_equals_plain(subject: Subject) -> str:
    """A run, plain, hooked everywhere or reading everything, equals Hugging Face's bit for bit."""
    vlm, prompt = subject.vlm, subject.prompt
    runs = {
        "run": lambda: vlm.run(prompt),
        "run_with_hooks at every point": lambda: vlm.run_with_hooks(
            prompt, fwd_hooks=[(subject.names, lambda x, hook: None)]
        ),
        "run_with_cache of every point": lambda: vlm.run_with_cache(
            prompt, names_filter=subject.names
        )[0],
    }
    for what, run in runs.items():
        _check_equal(what, run(), subject.plain)
    if has_plain_weights(vlm.hf_model):
        recorded = vlm.run_with_cache(prompt, grad=True)[0].detach()
        _check_equal("run_with_cache(grad=True)", recorded, subject.plain_recorded)
    return ""


def _check_equal(what: str, logits: Tensor, plain: Tensor) -> None:
    if not torch.equal(logits, plain):
        raise CheckFailed(f"{what} is off by {float((logits - plain).abs().max()):.3g}")


def points_fire(subject: Subject) -> str:
    """Every point fires once a run and has the shape that it declares."""
    n_rows, length = subject.mask.shape
    for name in subject.names:
        if name not in subject.cache:
            raise CheckFailed(f"{name} never fired")
        point, value = subject.vlm.architecture.points[name], subject.cache[name]
        if value.dim() != len(point.axes):
            raise CheckFailed(f"{name} declares {point.shape} and has {list(value.shape)}")
        known = {"batch": n_rows, "pos": length if point.space == "text" else None}
        if point.space == "encoder":
            known["pos"] = len(subject.prompt.layouts[0].counted("encoder")[0])
        for axis, declared, found in zip(point.axes, point.sizes, value.shape, strict=True):
            wanted = declared if declared is not None else known.get(axis)
            if wanted is not None and wanted != found:
                raise CheckFailed(f"{name} declares {point.shape} and has {list(value.shape)}")
    return f"{len(subject.names)} points"


def writes_restore(subject: Subject) -> str:
    """Writing back what was read gives the plain logits, bit for bit."""
    cache = subject.cache  # read before a write begins
    for name in subject.names:
        logits = subject.write(name, lambda x, name=name: cache[name].clone(), cold=False)
        if not torch.equal(logits, subject.plain):
            off = float((logits - subject.plain).abs().max())
            raise CheckFailed(f"{name} written back is off by {off:.3g}")
    return ""


_OF_SEVERAL_KEYS = ("attn.q", "attn.k", "attn.attn_scores")


def writes_act(subject: Subject) -> str:
    """A write to every writable point changes the logits; one to a read-only point does not."""
    for cold in (False, True) if subject.cold else (False,):
        for name in subject.names:
            point = subject.vlm.architecture.points[name]
            logits = subject.write(name, _noise, cold=cold)
            acts = not torch.equal(logits, subject.plain)
            state = "that has never run" if cold else "that has run before"
            if not acts and subject.prompt.length == 1 and point.kind in _OF_SEVERAL_KEYS:
                continue  # a query that sees one key gives it all its weight
            if point.writable and not acts:
                raise CheckFailed(f"a write to {name} does nothing on a model {state}")
            if not point.writable and acts:
                raise CheckFailed(f"{name} is declared read-only, and a write to it acts")
    return "cold and warm" if subject.cold else "warm"


def missing_points_are_errors(subject: Subject) -> str:
    """Asking for a point that the family lacks raises the reason."""
    missing = subject.vlm.architecture.points.missing
    for pattern, reason in missing.items():
        name = pattern.replace("*", "0")
        try:
            subject.vlm.points(name)
        except PointError as error:
            if reason not in str(error):
                raise CheckFailed(f"asking for {name} does not say why it is missing") from None
        else:
            raise CheckFailed(f"{name} is declared missing and exists")
    return f"{len(missing)} declared" if missing else "nothing is missing"


def residual_chain(subject: Subject) -> str:
    """What leaves one block enters the next."""
    family = subject.vlm.family
    breaks = {"": family.residual_breaks, "vision.": family.tower_breaks}
    breaks |= {"encoder.": "", "projector.": ""}
    for prefix, reason in breaks.items():
        for i in range(10_000):
            here, after = (
                f"{prefix}blocks.{i}.hook_resid_post",
                f"{prefix}blocks.{i + 1}.hook_resid_pre",
            )
            if here not in subject.cache or after not in subject.cache:
                break
            if not torch.equal(subject.cache[here], subject.cache[after]) and not reason:
                raise CheckFailed(f"{here} is not {after}, and the family does not say why")
    return "; ".join(filter(None, breaks.values()))


def lens_reproduces_logits(subject: Subject) -> str:
    """The last layer's residual stream, normed and unembedded, gives the logits."""
    vlm, cache = subject.vlm, subject.cache
    if vlm.architecture.unknown_head:
        raise NotApplicable(vlm.architecture.unknown_head)
    last = f"blocks.{vlm.cfg.n_layers - 1}.hook_resid_post"
    decoded = vlm.unembed(vlm.ln_final(cache[last]))
    error = float((decoded - subject.plain).float().abs().max())
    if not error <= _tolerance(subject, 1e-4) * float(subject.plain.float().abs().max()):
        raise CheckFailed(f"the last layer's decoding is off by {error:.3g}")
    return ""


def parts_sum(subject: Subject) -> str:
    """The input and what every block adds make the last residual stream, at text and pictures."""
    cache, n_layers = subject.cache, subject.vlm.cfg.n_layers
    reasons = subject.vlm.family.residual_breaks
    if reasons:
        raise NotApplicable(reasons)
    total = cache["hook_merged"].double()
    for i in range(n_layers):
        parts = [f"blocks.{i}.{part}" for part in ("hook_attn_out", "hook_mlp_out")]
        crossing = f"blocks.{i}.hook_cross_attn_out"
        ends = [f"blocks.{i}.{end}" for end in ("hook_resid_post", "hook_resid_pre")]
        if all(name in cache for name in parts):
            total = total + cache[parts[0]].double() + cache[parts[1]].double()
            total = total + cache[crossing].double() if crossing in cache else total
        elif ends[0] in cache:  # a block that lacks one of them counts by what it adds in all
            total = total + (cache[ends[0]].double() - cache[ends[1]].double())
    final = cache[f"blocks.{n_layers - 1}.hook_resid_post"].double()
    off = (total - final).abs().amax(-1) > _tolerance(subject, 1e-3) * final.abs().max()
    wrong = off & subject.mask.to(final.device)
    if wrong.any():
        row, pos = wrong.nonzero()[0].tolist()
        kind = subject.prompt.layouts[row].kinds[pos]
        raise CheckFailed(f"the parts do not sum up at {int(wrong.sum())} positions ({kind} first)")
    return ""


def patterns_are_weights(subject: Subject) -> str:
    """Attention patterns are not negative and sum to 1 over keys."""
    patterns = [n for n in subject.names if n.endswith("attn.hook_pattern")]
    if not patterns:
        raise NotApplicable("this model forms no attention patterns")
    for name in patterns:
        pattern = subject.cache[name].float()
        rows = pattern.sum(-1)
        if subject.vlm.architecture.points[name].space == "text":
            rows = rows.transpose(1, 2)[subject.mask.to(rows.device)]
        tolerance = _tolerance(subject, 1e-3)
        if (pattern < 0).any() or not torch.allclose(rows, torch.ones_like(rows), atol=tolerance):
            raise CheckFailed(f"{name} has rows that do not sum to 1")
    return f"{len(patterns)} layers"


def generation_equals_plain(subject: Subject) -> str:
    """Greedy generation without interventions equals Hugging Face's, with and without KV cache."""
    model, inputs = subject.vlm.hf_model, subject.prompt.inputs
    for use_cache in (True, False):
        options: dict[str, Any] = {"use_cache": use_cache, "do_sample": False}
        pad = model.generation_config.pad_token_id
        options["pad_token_id"] = 0 if pad is None else pad
        try:
            expected = model.generate(**inputs, max_new_tokens=3, **options)
        except Exception as error:  # noqa: BLE001  the model's own code, on its own
            raise NotApplicable(f"Hugging Face's own model does not generate: {error}") from None
        expected = expected[:, subject.prompt.length :]
        found = subject.vlm.generate(subject.prompt, max_new_tokens=3, **options).tokens
        if not torch.equal(expected, found):
            raise CheckFailed(f"with use_cache={use_cache}: {found.tolist()}, {expected.tolist()}")
    return ""


def nothing_is_left_behind(subject: Subject) -> str:
    """Weights, attention implementation and hooks are as before, also after an exception."""
    model = subject.vlm.hf_model
    subject.vlm.run(subject.prompt)
    before = _state(model)

    def explode(x: Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    for name in (subject.names[0], subject.names[-1]):
        try:
            subject.vlm.run_with_hooks(subject.prompt, fwd_hooks=[(name, explode)])
        except KeyboardInterrupt:
            pass
        else:
            raise CheckFailed(f"an exception raised at {name} did not come through")
    if _state(model) != before:
        raise CheckFailed("hooks, parameters or attention implementation differ after runs")
    if not torch.equal(subject.vlm.run(subject.prompt), subject.plain):
        raise CheckFailed("the logits differ after runs")
    return ""


def _state(model: nn.Module) -> tuple:
    configs = {
        getattr(m.config, "_attn_implementation", None)
        for m in model.modules()
        if hasattr(m, "config")
    }
    return tuple(model.state_dict()), frozenset(configs), count_hooks(model)


def grids_round_trip(subject: Subject) -> str:
    """Position -> box of pixels -> position, for every patch of every picture."""
    if not subject.has_images:
        raise NotApplicable("the prompt has no picture")
    count = 0
    for grid in _grids(subject.prompt):
        for position in grid.positions:
            box = grid.pixels(position)
            if box[2] - box[0] < 1e-6 or box[3] - box[1] < 1e-6:
                continue  # a patch of padding shows nothing of the picture
            if grid.box(*box) != [position]:
                raise CheckFailed(f"position {position} -> {box} -> {grid.box(*box)}")
            count += 1
    if not count:
        raise NotApplicable("no position of this model holds a single patch")
    return f"{count} patches"


def _grids(prompt: Prompt) -> Iterator[Any]:
    for layout in prompt.layouts:
        for image in layout.images:
            for space in (image.text, image.vision, image.projector):
                yield from space.grids
