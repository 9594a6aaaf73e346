"""vlm_lens: name any place in a vision-language model's computation, and read it or change it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlm_lens.version import __version__

if TYPE_CHECKING:  # what _HOMES says, for editors and type checkers
    from vlm_lens.errors import VLMLensError as VLMLensError
    from vlm_lens.explorer import explore as explore
    from vlm_lens.hooked.cache import ActivationCache as ActivationCache
    from vlm_lens.interventions import Ablate as Ablate
    from vlm_lens.interventions import ActivationPatch as ActivationPatch
    from vlm_lens.interventions import AttentionEdit as AttentionEdit
    from vlm_lens.interventions import AttentionKnockout as AttentionKnockout
    from vlm_lens.interventions import Clamp as Clamp
    from vlm_lens.interventions import Interchange as Interchange
    from vlm_lens.interventions import Intervention as Intervention
    from vlm_lens.interventions import Project as Project
    from vlm_lens.interventions import ProjectAway as ProjectAway
    from vlm_lens.interventions import Remove as Remove
    from vlm_lens.interventions import Resample as Resample
    from vlm_lens.interventions import Scale as Scale
    from vlm_lens.interventions import Steer as Steer
    from vlm_lens.layout.layout import Layout as Layout
    from vlm_lens.layout.positions import All as All
    from vlm_lens.layout.positions import At as At
    from vlm_lens.layout.positions import Find as Find
    from vlm_lens.layout.positions import Frames as Frames
    from vlm_lens.layout.positions import Generated as Generated
    from vlm_lens.layout.positions import Images as Images
    from vlm_lens.layout.positions import Last as Last
    from vlm_lens.layout.positions import Patches as Patches
    from vlm_lens.layout.positions import Span as Span
    from vlm_lens.layout.positions import Text as Text
    from vlm_lens.lenses import LogitLens as LogitLens
    from vlm_lens.measures import KL as KL
    from vlm_lens.measures import AnswerProb as AnswerProb
    from vlm_lens.measures import AnyOf as AnyOf
    from vlm_lens.measures import LogitDiff as LogitDiff
    from vlm_lens.measures import LogProb as LogProb
    from vlm_lens.measures import Prob as Prob
    from vlm_lens.measures import Rank as Rank
    from vlm_lens.model.hooked_vlm import HookedVLM as HookedVLM
    from vlm_lens.pairs import Pair as Pair
    from vlm_lens.pairs import Pairs as Pairs
    from vlm_lens.points.point import Point as Point
    from vlm_lens.prompts.prompt import Prompt as Prompt
    from vlm_lens.prompts.template import RawPrompt as RawPrompt
    from vlm_lens.reading.mean import Mean as Mean
    from vlm_lens.reading.samples import Samples as Samples
    from vlm_lens.reading.vectors import TaskVector as TaskVector
    from vlm_lens.reading.vectors import VectorEnsemble as VectorEnsemble
    from vlm_lens.scores import Scores as Scores

# Loaded when first used, so that `import vlm_lens` is quick.
_HOMES = {
    "HookedVLM": "vlm_lens.model.hooked_vlm",
    "Prompt": "vlm_lens.prompts.prompt",
    "RawPrompt": "vlm_lens.prompts.template",
    "ActivationCache": "vlm_lens.hooked.cache",
    "Point": "vlm_lens.points.point",
    "Layout": "vlm_lens.layout.layout",
    "ActivationPatch": "vlm_lens.interventions",
    "Ablate": "vlm_lens.interventions",
    "Steer": "vlm_lens.interventions",
    "Scale": "vlm_lens.interventions",
    "Clamp": "vlm_lens.interventions",
    "Remove": "vlm_lens.interventions",
    "Project": "vlm_lens.interventions",
    "ProjectAway": "vlm_lens.interventions",
    "AttentionEdit": "vlm_lens.interventions",
    "AttentionKnockout": "vlm_lens.interventions",
    "Resample": "vlm_lens.interventions",
    "Interchange": "vlm_lens.interventions",
    "Intervention": "vlm_lens.interventions",
    "Scores": "vlm_lens.scores",
    "Pair": "vlm_lens.pairs",
    "Pairs": "vlm_lens.pairs",
    "TaskVector": "vlm_lens.reading.vectors",
    "VectorEnsemble": "vlm_lens.reading.vectors",
    "Mean": "vlm_lens.reading.mean",
    "Samples": "vlm_lens.reading.samples",
    "LogitLens": "vlm_lens.lenses",
    "explore": "vlm_lens.explorer",
    "AnswerProb": "vlm_lens.measures",
    "AnyOf": "vlm_lens.measures",
    "KL": "vlm_lens.measures",
    "LogitDiff": "vlm_lens.measures",
    "LogProb": "vlm_lens.measures",
    "Prob": "vlm_lens.measures",
    "Rank": "vlm_lens.measures",
    "All": "vlm_lens.layout.positions",
    "At": "vlm_lens.layout.positions",
    "Find": "vlm_lens.layout.positions",
    "Generated": "vlm_lens.layout.positions",
    "Frames": "vlm_lens.layout.positions",
    "Images": "vlm_lens.layout.positions",
    "Last": "vlm_lens.layout.positions",
    "Patches": "vlm_lens.layout.positions",
    "Span": "vlm_lens.layout.positions",
    "Text": "vlm_lens.layout.positions",
    "VLMLensError": "vlm_lens.errors",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604


def __dir__() -> list[str]:
    return sorted(__all__)


def _room_of(name: str) -> str:
    """A clause that says which room a class is in, or an empty string."""
    rooms = ("recipes", "lenses", "dictionaries", "probes", "directions", "tasks", "measures",
             "sweep", "patching", "attribution", "distributed")  # fmt: skip
    for room in rooms if name[:1].isupper() else ():
        if name in getattr(import_module(f"vlm_lens.{room}"), "__all__", ()):
            return f" It is in vlm_lens.{room}: from vlm_lens.{room} import {name}."
    return ""


if not TYPE_CHECKING:  # a type checker would take any name for known

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            from vlm_lens.errors import near_matches

            near = _room_of(name) or near_matches(name, __all__)
            raise AttributeError(f"module 'vlm_lens' has no attribute {name!r}.{near}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
