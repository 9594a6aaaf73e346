"""One call on a model that a user brings: wrapped, described, and put to the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.testing.conformance import conformance
from vlm_lens.testing.report import Report

if TYPE_CHECKING:
    from vlm_lens.prompts.prompt import Prompt

Level = Literal["full", "branches", "residual"]

_WITHIN = {"attn.q", "attn.k", "attn.v", "attn.z", "mlp.pre", "mlp.post"}


def level_of(vlm: HookedVLM) -> Level:
    """What the text model's blocks show.

    Returns:
        `"full"`: queries, keys, values, what heads mix, and neurons, in some block at least;
        `"branches"`: what attention or MLP adds to the stream; `"residual"`: the stream between
        blocks.
    """
    kinds = {p.kind for p in vlm.points("blocks.*").values()}
    if kinds >= _WITHIN:
        return "full"
    return "branches" if kinds & {"attn_out", "mlp_out"} else "residual"


def check(
    model: HookedVLM | str | Path,
    *,
    picture: Image.Image | str | Path | None = None,
    cold: bool = False,
    only: tuple[str, ...] = (),
    progress: bool = True,
    **options: Any,
) -> Report:
    """Wraps a model and puts it to the conformance suite, on a short prompt of its own making.

    Several hundred short forward passes; with `only` fewer.

    Args:
        model: A HookedVLM, or what `HookedVLM.from_pretrained` takes.
        picture: What the prompt shows where the model takes pictures; noise by default.
        cold: Also run the checks that need a copy of the model in memory; see `conformance`.
        only: Names of checks; all by default.
        progress: Show a progress bar, with the name of the check that runs.
        **options: Passed to `HookedVLM.from_pretrained`: `dtype`, `device`, ...

    Returns:
        A report that begins with what was found: level, points, and what is missing and why. It
        prints as a table, and `report.save_html(path)` writes one.

    Raises:
        ModelError: It cannot be loaded or wrapped.
    """
    vlm = model if isinstance(model, HookedVLM) else HookedVLM.from_pretrained(model, **options)
    report = conformance(vlm, _prompt(vlm, picture), cold=cold, only=only, progress=progress)
    return replace(report, found=tuple(_found(vlm)))


def _prompt(vlm: HookedVLM, picture: Any) -> Prompt:
    if vlm.processor is None:
        raise PromptError(
            "This HookedVLM has no processor, so no prompt can be made for it: give one, "
            "HookedVLM(model, processor), or call conformance(vlm, inputs) on a processor's output."
        )
    if not vlm.family.takes_images:
        return vlm.prompt("The capital of Greece is")
    if picture is None:
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
    return vlm.prompt("<image>The capital of Greece is", [picture])


def _found(vlm: HookedVLM) -> Iterator[tuple[str, str]]:
    """What the model shows, and what is missing: a name and a sentence each."""
    cfg, points = vlm.cfg, vlm.points()
    yield "text blocks", f"{cfg.n_layers}, shown at the level {level_of(vlm)!r}"
    groups = {"vision.": 0, "projector.": 0, "": 0}
    for name in points:
        groups[next(g for g in groups if name.startswith(g))] += 1
    parts = {"vision.": "tower", "projector.": "projector", "": "language model"}
    yield "points", ", ".join(f"{groups[g]} in the {what}" for g, what in parts.items())
    if vlm.architecture.unknown_head:
        yield "logits", vlm.architecture.unknown_head
    for why in (vlm.family.residual_breaks, vlm.family.tower_breaks):
        if why:
            yield "stream", why
    for glob, reason in vlm.architecture.points.missing.items():
        yield f"no {glob}", reason
