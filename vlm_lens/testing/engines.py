"""Whether a model's variants, pictures and half-precision copy are what its own forward gives."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vlm_lens.errors import VLMLensError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.interventions import Ablate, Intervention, Steer
from vlm_lens.layout.positions import Images, Last
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.sweep import sweep
from vlm_lens.testing.checks import CheckFailed, NotApplicable, Subject, has_plain_weights

_TEXT = ("hook_resid_post", "attn.hook_z", "hook_mlp_out")
_PICTURES = ("vision.blocks.0.hook_resid_post", "vision.hook_out", "projector.hook_out")


def replay_equals_full(subject: Subject) -> str:
    """A sweep's variants, of text and of each picture alone, equal runs in full."""
    vlm, prompt = subject.vlm, subject.prompt
    variants = [*_of_text(subject), *_of_pictures(vlm, prompt)]
    options = {"measure": "logits", "progress": False}
    try:
        replayed = sweep(vlm, prompt, variants, **options)
    except (ValueError, RuntimeError) as error:
        raise CheckFailed(f"a sweep fails: {error}") from None
    n_full = replayed.engines.get("full", 0)
    if n_full == len(variants):
        raise NotApplicable(f"variants run in full: {'; '.join(map(str, replayed.reasons))}")
    full = sweep(vlm, prompt, variants, engine="full", **options)
    n_rows = len(prompt.layouts)
    pairs = zip(replayed.stack("logits"), full.stack("logits"), strict=True)
    for number, (mine, expected) in enumerate(pairs):
        if not _same(mine, expected):
            raise CheckFailed(f"{variants[number // n_rows]!r} replayed is not what it is in full")
    return f"{len(variants) - n_full} of {len(variants)} variants"


def _of_text(subject: Subject) -> list[Intervention]:
    points, middle = subject.vlm.architecture.points, subject.vlm.cfg.n_layers // 2
    names = [f"blocks.{middle}.{part}" for part in _TEXT]
    known = [points[n] for n in names if n in points]
    return [
        Ablate(point.name, Last())
        for point in known
        if point.writable and (subject.has_images or not point.needs_pictures)
    ]


def _of_pictures(vlm: HookedModel, prompt: Prompt) -> list[Intervention]:
    points = vlm.architecture.points
    names = [n for n in _PICTURES if n in points and points[n].writable]
    n_shown = min(len(layout.images) for layout in prompt.layouts)
    return [Steer(n, Images(number), 0.5) for n in names for number in range(n_shown)]


def pictures_are_separate(subject: Subject) -> str:
    """Pictures whose features are computed once for many prompts give the plain logits."""
    vlm, prompt = subject.vlm, subject.prompt
    if not subject.has_images:
        raise NotApplicable("the prompt has no picture")
    for layout, given in zip(prompt.layouts, prompt.images, strict=False):
        if len(layout.images) != len(given):
            raise CheckFailed(
                f"the layout holds {len(layout.images)} pictures in row {layout.row}, which was "
                f"given {len(given)}"
            )
    if vlm.family.not_separable:
        raise NotApplicable(vlm.family.not_separable)
    try:
        with vlm.reusing_pictures():
            first, again = vlm.run(prompt), vlm.run(prompt)
    except (ValueError, RuntimeError) as error:
        raise CheckFailed(f"features computed picture by picture: {error}") from None
    for logits in (first, again):
        real = subject.mask.to(logits.device)
        if not _same(logits[real], subject.plain[real]):
            raise CheckFailed("features computed picture by picture give other logits")
    return f"{sum(len(layout.images) for layout in prompt.layouts)} pictures"


def half_precision(subject: Subject) -> str:
    """Copies in bfloat16 and float16 read the same prompt and run as Hugging Face's own."""
    vlm = subject.vlm
    if not subject.cold:
        raise NotApplicable("it takes a copy of the model (cold=True)")
    if not has_plain_weights(vlm.hf_model):
        raise NotApplicable("weights that are quantised or offloaded are not cast")
    told = {dtype: _in_half(subject, dtype) for dtype in (torch.bfloat16, torch.float16)}
    ran = [_named(dtype) for dtype, why in told.items() if not why]
    lacks = [f"Hugging Face's own model does not run in {_named(dtype)} ({why})"
             for dtype, why in told.items() if why]  # fmt: skip
    if not ran:
        raise NotApplicable("; ".join(lacks))
    return "; ".join([" and ".join(ran), *lacks])


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_half(subject: Subject, dtype: torch.dtype) -> str:
    """Why Hugging Face's own model does not run in a dtype; empty where it does, as here."""
    vlm, prompt = subject.vlm, subject.prompt
    copied = copy.deepcopy(vlm.hf_model)
    # the class's own: accelerate puts one on the instance, which stays the original's in a copy
    cast = type(copied).to(copied, dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in prompt.inputs.items()}
    try:
        with torch.no_grad():
            plain = cast(**inputs, use_cache=False).logits
    except (RuntimeError, NotImplementedError) as error:  # a kernel that the device lacks
        return str(error).split("\n")[0][:120]
    twin = HookedModel(cast, vlm.processor)
    known = prompt.texts and vlm.processor is not None and len(prompt.images) == len(prompt.texts)
    try:
        if known:
            given = twin.prompt(list(prompt.texts), [list(row) for row in prompt.images])
        else:
            given = twin.as_prompt(dict(prompt.inputs))
        logits = twin.run(given)
    except (RuntimeError, VLMLensError) as error:
        raise CheckFailed(
            f"Hugging Face's own model runs in {_named(dtype)}, and here: {error}"
        ) from None
    same = torch.equal(logits.nan_to_num(), plain.nan_to_num())  # float16 may overflow
    if not same or not torch.equal(logits.isnan(), plain.isnan()):
        raise CheckFailed(f"{_named(dtype)} is off by {float((logits - plain).abs().max()):.3g}")
    return ""


def _same(mine: Tensor, expected: Tensor) -> bool:
    """Whether logits agree within rounding, those that a model bars left out."""
    usual = expected.abs() < 1e30
    tolerance = max(1e-4, 16 * torch.finfo(expected.dtype).eps)
    expected, mine = (torch.where(usual, x, 0).float() for x in (expected, mine.to(expected)))
    scale = expected.abs().amax(-1, keepdim=True)
    return bool(((mine - expected).abs() <= tolerance * scale).all())
