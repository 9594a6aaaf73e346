"""One identity of a run: everything that its numbers depend on, by name."""

from __future__ import annotations

from typing import Any

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.storage.fingerprint import fingerprint
from vlm_lens.storage.identity import library_versions, model_settings, processor_digest
from vlm_lens.storage.weights import weights_digest


def run_identity(vlm: HookedModel, **asked: Any) -> dict[str, str]:
    """What the numbers of a run depend on, by name: digests, and versions in words.

    Weights (every one of them is read: about 1 s for each GB on one CPU core), the model's
    settings and what is switched on in it (adapters, hooks of others, train or eval mode, attention
    implementation), the processor, contexts that are open around the run, libraries, and what is
    asked.

    Args:
        vlm: The model.
        **asked: What is asked of it, by name: prompt, interventions, measure, ...
    """
    libraries = library_versions(("torch", "transformers"))
    return {
        "weights": str(weights_digest(vlm.hf_model, exact=True)),
        "model settings": model_settings(vlm.hf_model),
        "processor": processor_digest(vlm.processor),
        "open interventions or hooks": fingerprint(list(vlm._active)),
        "version of a library": ", ".join(f"{name} {v}" for name, v in libraries.items()),
        **{name.replace("_", " "): fingerprint(value) for name, value in asked.items()},
    }


__all__ = ["run_identity"]
