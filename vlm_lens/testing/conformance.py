"""One call that says whether a model can be trusted to do what its points promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from vlm_lens.errors import ModelError
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.testing import checks, engines, gradients
from vlm_lens.testing.checks import CheckFailed, NotApplicable, Subject
from vlm_lens.testing.report import FAILED, NOT_APPLICABLE, PASSED, CheckResult, Report

CHECKS: dict[str, Callable[[Subject], str]] = {
    "forward equals Hugging Face": checks.forward_equals_plain,
    "every point fires": checks.points_fire,
    "writing back restores": checks.writes_restore,
    "every write acts": checks.writes_act,
    "what is missing says why": checks.missing_points_are_errors,
    "residual stream is one stream": checks.residual_chain,
    "lens reproduces logits": checks.lens_reproduces_logits,
    "parts sum to the residual stream": checks.parts_sum,
    "attention rows sum to 1": checks.patterns_are_weights,
    "generation equals Hugging Face": checks.generation_equals_plain,
    "nothing is left behind": checks.nothing_is_left_behind,
    "patch -> pixels -> patch": checks.grids_round_trip,
    "gradients equal finite differences": gradients.gradients_are_right,
    "variants equal runs in full": engines.replay_equals_full,
    "pictures stand on their own": engines.pictures_are_separate,
    "half precision equals Hugging Face": engines.half_precision,
}


def conformance(
    vlm: HookedVLM,
    prompt: Any,
    images: Any = None,
    *,
    cold: bool = True,
    only: tuple[str, ...] = (),
    progress: bool = False,
) -> Report:
    """Checks a model on a prompt against plain Hugging Face and closed forms.

    Several hundred forward passes: use a small model of the architecture, or a short prompt.

    Args:
        vlm: A HookedVLM.
        prompt: A Prompt (a batch is fine), text, or a processor's output; with pictures, if the
            vision points are to be checked.
        images: Pictures, where `prompt` is text.
        cold: Also run the checks that need a copy of the model: writes in the state before its
            first run, and gradients in float64. They take the memory of a second model, or of two
            to four where the weights are in half precision.
        only: Names of checks; all by default.
        progress: Show a progress bar, with the name of the check that runs.

    Returns:
        A report; `report.raise_if_failed()` turns failures into an error.

    Raises:
        ModelError: `only` names no check.
    """
    unknown = [name for name in only if name not in CHECKS]
    if unknown:
        raise ModelError(f"There is no check {unknown[0]!r}; there are {', '.join(CHECKS)}.")
    subject = Subject(vlm, vlm.as_prompt(prompt, images), cold)
    results = []
    chosen = [name for name in CHECKS if not only or name in only]
    bar = tqdm(chosen, unit="check", leave=False, disable=not progress)
    for name in bar:
        bar.set_description(name)
        try:
            results.append(CheckResult(name, PASSED, CHECKS[name](subject)))
        except CheckFailed as failure:
            results.append(CheckResult(name, FAILED, str(failure)))
        except NotApplicable as reason:
            results.append(CheckResult(name, NOT_APPLICABLE, str(reason)))
        except Exception as error:  # noqa: BLE001  whatever a model's code raises is a finding
            told = f"{type(error).__name__}: {str(error)[:200]}"
            results.append(CheckResult(name, FAILED, f"it raises {told}"))
    return Report(vlm.name, vlm.cfg.family, tuple(results))
