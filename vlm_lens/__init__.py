"""vlm_lens: name any place in a vision-language model's computation, and read it or change it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vlm_lens.version import __version__

# Loaded when first used, so that `import vlm_lens` is quick.
_HOMES = {
    "HookedVLM": "vlm_lens.model.hooked_vlm",
    "Prompt": "vlm_lens.prompts.prompt",
    "RawPrompt": "vlm_lens.prompts.template",
    "ActivationCache": "vlm_lens.hooked.cache",
    "Point": "vlm_lens.points.table",
    "Layout": "vlm_lens.layout.layout",
    "ActivationPatch": "vlm_lens.interventions",
    "Ablate": "vlm_lens.interventions",
    "Steer": "vlm_lens.interventions",
    "Intervention": "vlm_lens.interventions",
    "Scores": "vlm_lens.scores",
    "TaskVector": "vlm_lens.reading.vectors",
    "VectorEnsemble": "vlm_lens.reading.vectors",
    "Mean": "vlm_lens.reading.mean",
    "LogitLens": "vlm_lens.lenses",
    "All": "vlm_lens.layout.positions",
    "At": "vlm_lens.layout.positions",
    "Find": "vlm_lens.layout.positions",
    "Generated": "vlm_lens.layout.positions",
    "Images": "vlm_lens.layout.positions",
    "Last": "vlm_lens.layout.positions",
    "Patches": "vlm_lens.layout.positions",
    "Span": "vlm_lens.layout.positions",
    "Text": "vlm_lens.layout.positions",
    "VLMLensError": "vlm_lens.errors",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlm_lens' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
