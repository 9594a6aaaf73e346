"""The tiny models of every family: real classes, random weights, real processors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tiny

from vlm_lens import HookedVLM

Size = tuple[int, int]


@dataclass(frozen=True)
class Tiny:
    """One tiny model, and what its tests need to know of it.

    Attributes:
        title: Its line in the published table.
        module: The module under `tests/families` that builds it.
        save: The function of it that saves one.
        options: What is passed to it.
        painted: Sizes of pictures of which patches are painted.
        exact: Points of the tower at which painting a patch changes its own position alone.
        second: Size of a second picture of which patches are painted; `None` where not.
        whole: Whether the last patch of a picture ends where the picture ends.
        boxes: Whether a box of a picture means the same places in projector and text.
        text_only: Whether its model runs without any picture.
        rows_alone: Whether the model itself gives a row of a batch what it gives the row alone,
            also beside a row of more pictures.
        smallest: Least side of a picture in pixels.
        also: Whether it is a second model of a family that is in the table already; the dear tests
            of replay leave it out.
    """

    title: str
    module: str
    save: str = "save"
    options: dict[str, Any] = field(default_factory=dict)
    painted: tuple[Size, ...] = ((64, 48),)
    exact: tuple[str, ...] = ()
    second: Size | None = (64, 120)
    whole: bool = True
    boxes: bool = True
    text_only: bool = True
    rows_alone: bool = True
    smallest: int = 1
    also: bool = False

    def save_to(self, folder: Path) -> Path:
        """A checkpoint of it."""
        save: Callable[..., object] = getattr(importlib.import_module(self.module), self.save)
        save(folder=folder, **self.options)
        return folder

    def load(self, folder: Path) -> HookedVLM:
        """The model, saved to a folder and loaded from it as a user would."""
        return HookedVLM.from_pretrained(self.save_to(folder))


_llava = partial(Tiny, module="tiny", boxes=False, second=None, whole=False, also=True, painted=())
_packed = partial(Tiny, exact=("vision.hook_embed",), painted=((24, 16), (16, 32)), second=None)

VLMS: dict[str, Tiny] = {
    "llava-clip": _llava("LLaVA-1.5 (CLIP)", options={"name": "clip-llama"}),
    "llava-siglip": _llava("LLaVA-1.5 (SigLIP)", options={"name": "siglip-mistral"}),
    "llava-pixtral": Tiny("LLaVA (Pixtral)", "families.tiny_mistral3", "save_llava",
                          painted=((32, 24), (64, 40), (20, 333)), whole=False, also=True),
    "vipllava": Tiny("VipLlava", "families.tiny_vipllava", painted=((64, 48), (90, 333)),
                     whole=False),
    "llava_next": Tiny("LLaVA-NeXT", "families.tiny_llava_next", whole=False,
                       painted=((64, 64), (120, 52), (40, 200), (201, 64))),
    "llava_next-granite": Tiny("LLaVA-NeXT with Granite", "families.tiny_llava_next", whole=False,
                               options={"text": "granite"}, painted=(), second=None, also=True),
    "llava_onevision": Tiny("LLaVA-OneVision", "families.tiny_llava_onevision", whole=False,
                            painted=((64, 64), (120, 52), (100, 200)), boxes=False),
    "idefics2": Tiny("Idefics2", "families.tiny_idefics2", boxes=False, whole=False,
                     painted=((17, 400), (400, 17), (100, 60))),
    "idefics2-split": Tiny("Idefics2 (split)", "families.tiny_idefics2", options={"split": True},
                           painted=((101, 67),), boxes=False, whole=False, also=True, smallest=2),
    "idefics3": Tiny("Idefics3", "families.tiny_idefics3", painted=((96, 60),), second=(40, 96)),
    "smolvlm": Tiny("SmolVLM", "families.tiny_smolvlm", painted=((96, 60),), second=(40, 96)),
    "fuyu": _packed("Fuyu, Mantis-Fuyu", "families.tiny_fuyu", exact=()),
    "qwen2_vl": _packed("Qwen2-VL", "families.tiny_qwen2_vl"),
    "qwen2_5_vl": _packed("Qwen2.5-VL", "families.tiny_qwen2_5_vl",
                          painted=((40, 24), (24, 32))),
    "qwen3_vl": _packed("Qwen3-VL", "families.tiny_qwen3_vl"),
    "qwen3_vl_moe": _packed("Qwen3-VL with experts", "families.tiny_qwen3_vl_moe", also=True),
    "qwen3_5": _packed("Qwen3.5", "families.tiny_qwen3_5"),
    "gemma3": Tiny("Gemma 3", "families.tiny_gemma3", painted=((64, 48), (90, 333))),
    "paligemma": Tiny("PaliGemma", "families.tiny_paligemma", painted=((64, 48), (90, 333))),
    "internvl": Tiny("InternVL", "families.tiny_internvl", painted=((96, 60),), second=(40, 96)),
    "internvl-qwen3_moe": Tiny("InternVL with Qwen3-MoE", "families.tiny_internvl", painted=(),
                               second=None, options={"text": "qwen3_moe"}, also=True),
    "internvl-gpt_oss": Tiny("InternVL with gpt-oss", "families.tiny_internvl", painted=(),
                             second=None, options={"text": "gpt_oss"}, also=True),
    "mistral3": Tiny("Mistral3", "families.tiny_mistral3", painted=((32, 24), (64, 40), (20, 333)),
                     whole=False),
    "mllama": _packed("Llama 3.2 Vision", "families.tiny_mllama", painted=((24, 12), (12, 36)),
                      whole=False, boxes=False, rows_alone=False),
    "blip2": Tiny("BLIP-2", "families.tiny_blip2", painted=((96, 60),), second=(17, 400),
                  boxes=False, whole=False, text_only=False),
    "aya_vision": Tiny("Aya Vision", "families.tiny_aya_vision",
                       painted=((16, 16), (64, 64), (120, 52), (60, 130)), whole=False),
    "glm4v": _packed("GLM-4V", "families.tiny_glm4v"),
    "glm4v_moe": _packed("GLM-4.5V, with experts", "families.tiny_glm4v_moe", also=True),
    "chameleon": Tiny("Chameleon", "families.tiny_chameleon", painted=(), second=None, boxes=False,
                      whole=False),
}  # fmt: skip

LMS: dict[str, Tiny] = {
    name: Tiny(title, "tiny", options={"name": name})
    for name, title in (("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"))
}

FAMILIES = {name: tiny for name, tiny in VLMS.items() if not tiny.also}

assert set(LMS) == set(tiny.LMS)

ENCODER_DECODERS: dict[str, Tiny] = {
    "florence2": Tiny("Florence-2", "families.tiny_florence2", text_only=False),
    "t5gemma2": Tiny("T5Gemma 2", "families.tiny_encoders", options={"model_type": "t5gemma2"},
                     text_only=False),
}  # fmt: skip
