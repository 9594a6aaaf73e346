"""The table of what the conformance suite says of a tiny random model of every family.

The models are those of the tests: the real architectures with real processors.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # the tiny models' home

# heading -> module with `save(folder, ...)`, and what is passed to it
FAMILIES: dict[str, tuple[str, dict]] = {
    "LLaVA-1.5 (CLIP)": ("tiny", {"name": "clip-llama"}),
    "LLaVA-1.5 (SigLIP)": ("tiny", {"name": "siglip-mistral"}),
    "LLaVA (Pixtral)": ("families.tiny_mistral3:save_llava", {}),
    "VipLlava": ("families.tiny_vipllava", {}),
    "LLaVA-NeXT": ("families.tiny_llava_next", {}),
    "LLaVA-OneVision": ("families.tiny_llava_onevision", {}),
    "Idefics2": ("families.tiny_idefics2", {}),
    "Idefics2 (split)": ("families.tiny_idefics2", {"split": True}),
    "Idefics3": ("families.tiny_idefics3", {}),
    "SmolVLM": ("families.tiny_smolvlm", {}),
    "Fuyu, Mantis-Fuyu": ("families.tiny_fuyu", {}),
    "Qwen2-VL": ("families.tiny_qwen2_vl", {}),
    "Qwen2.5-VL": ("families.tiny_qwen2_5_vl", {}),
    "Qwen3-VL": ("families.tiny_qwen3_vl", {}),
    "Gemma 3": ("families.tiny_gemma3", {}),
    "PaliGemma": ("families.tiny_paligemma", {}),
    "InternVL": ("families.tiny_internvl", {}),
    "Mistral3": ("families.tiny_mistral3", {}),
    "Llama 3.2 Vision": ("families.tiny_mllama", {}),
    "BLIP-2": ("families.tiny_blip2", {}),
    "Aya Vision": ("families.tiny_aya_vision", {}),
    "GLM-4V": ("families.tiny_glm4v", {}),
    "Chameleon": ("families.tiny_chameleon", {}),
    "Llama": ("tiny", {"name": "llama"}),
    "Mistral": ("tiny", {"name": "mistral"}),
    "Qwen2": ("tiny", {"name": "qwen2"}),
}
MARKS = {"passed": "yes", "failed": "**no**", "not applicable": "–"}


def saver(where: str) -> Callable[..., object]:
    """The function that saves a tiny model."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name or "save")


def page() -> str:
    """The table, and what each family does not have."""
    from tiny import noise_picture

    from vlm_lens import HookedVLM
    from vlm_lens.testing import conformance
    from vlm_lens.testing.conformance import CHECKS

    names = list(CHECKS)
    lines = ["| family | points | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    notes = []
    for title, (where, options) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            saver(where)(folder=Path(folder), **options)
            vlm = HookedVLM.from_pretrained(folder)
        pictures = [noise_picture(0, (64, 48))] if vlm.family.takes_images else None
        report = conformance(vlm, ("<image>" if pictures else "") + "Q:Greece A:", pictures)
        cells = {r.name: MARKS[r.outcome] for r in report.results}
        lines.append(
            f"| {title} | {len(vlm.points())} | " + " | ".join(cells[n] for n in names) + " |"
        )
        for glob, reason in vlm.architecture.points.missing.items():
            notes.append(f"- {title}: no `{glob}`: {reason}")
        for reason in filter(None, (vlm.family.residual_breaks, vlm.family.not_replayable)):
            notes.append(f"- {title}: {reason}")
    found = sorted(set(notes), key=notes.index)
    return "\n".join([*lines, "", "What they lack, and what is special:", "", *found, ""])
