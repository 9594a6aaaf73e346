"""What becomes of one type: whether it wraps, what it shows, what the conformance suite says."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import tiny
import torch
from families.every import VLMS

from reach.builder import TYPES, build, replaced_tower
from reach.inputs import AFTER, BEFORE, NoExample, example
from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.prompts.prompt import Prompt
from vlm_lens.testing import conformance, level_of
from vlm_lens.testing.conformance import CHECKS

# types whose tiny model has a real processor in the tests of its family
READERS = {
    "llava": "llava-clip", "blip-2": "blip2",
    **{name: name for name in VLMS if name in TYPES},
}  # fmt: skip
_HALF = "half precision equals Hugging Face"


@dataclass(frozen=True)
class Trial:
    """One type's line.

    Attributes:
        model_type: Hugging Face's name of it.
        level: What the text model's blocks show; empty where the type is refused.
        tower: How many kinds of points the tower has.
        projector: Likewise.
        geometry: Whether patches have pixels, or why not.
        replay: Whether variants are replayed, or why not.
        passed: Checks that hold, and checks that apply.
        failed: Checks that do not hold, and where.
        notes: The reason of a refusal; what stood in for what; what prompt was run.
    """

    model_type: str
    level: str = ""
    tower: int = 0
    projector: int = 0
    geometry: str = ""
    replay: str = ""
    passed: tuple[int, int] = (0, 0)
    failed: tuple[str, ...] = ()
    notes: str = ""

    @property
    def conforms(self) -> bool:
        """Whether it wraps, and every check that applies holds."""
        return bool(self.level) and not self.failed


def read(model_type: str) -> tuple[HookedVLM, Prompt, str]:
    """A wrapped tiny model, a prompt with a picture where one can be made, and how it was made.

    Raises:
        VLMLensError: The type is refused.
    """
    if model_type in READERS:
        with tempfile.TemporaryDirectory() as folder:
            vlm = VLMS[READERS[model_type]].load(Path(folder))
        return vlm, vlm.prompt("<image>Q:Greece A:", [tiny.noise_picture(0, (64, 48))]), "processor"
    model = build(model_type)
    vlm = HookedVLM(model)
    try:
        tensors, how = example(model), "tensors"
    except NoExample:
        ids = torch.tensor([BEFORE + AFTER])
        tensors, how = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "text alone"
    return vlm, vlm.as_prompt(tensors), how


# checks that write to few points, so that all types can be tried in a minute or two
CHEAP = (
    "forward equals Hugging Face", "every point fires", "residual stream is one stream",
    "lens reproduces logits", "parts sum to the residual stream", "attention rows sum to 1",
    "patch -> pixels -> patch", "variants equal runs in full",
)  # fmt: skip


def quick(model_type: str) -> Trial:
    """One type, by the cheap checks alone."""
    return tried(model_type, only=CHEAP)


def tried(model_type: str, only: tuple[str, ...] = ()) -> Trial:
    """One type, tried by all checks, or by some."""
    stand_in = replaced_tower(model_type)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            vlm, prompt, how = read(model_type)
            usual = conformance(vlm, prompt, cold=False, only=only)
            half = None if only else conformance(vlm, prompt, only=(_HALF,))
    except VLMLensError as error:
        return Trial(model_type, notes=str(error).split(" Describe ")[0])
    except Exception as error:  # noqa: BLE001  a crash is what the table must show
        return Trial(model_type, failed=(f"{type(error).__name__}: {error}",))
    results = [r for r in usual.results if r.name != _HALF]
    results += [] if half is None else half.results
    outcome = {r.name: r for r in results}
    kinds = {p.kind for p in vlm.points().values()}
    applies = [r for r in results if r.outcome != "not applicable"]
    replay, grids = outcome["variants equal runs in full"], outcome["patch -> pixels -> patch"]
    images = prompt.layout.images
    why = images[0].text.why_no_grid if images else "the prompt has no picture"
    notes = [f"prompt: {how}"] if how != "processor" else []
    return Trial(
        model_type,
        level_of(vlm),
        sum(k.startswith("vision.") for k in kinds),
        sum(k.startswith("projector.") for k in kinds),
        "yes" if grids.outcome == "passed" else why or grids.detail,
        "yes" if replay.outcome == "passed" else replay.detail,
        (sum(r.outcome == "passed" for r in applies), len(applies)),
        tuple(f"{r.name}: {r.detail}" for r in results if r.outcome == "failed"),
        "; ".join(filter(None, [stand_in, *notes])),
    )


assert _HALF in CHECKS
