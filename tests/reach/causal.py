"""Tiny random models of transformers' causal language models, and what becomes of each."""

from __future__ import annotations

import warnings

import tiny
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reach.builder import TYPES, pictured
from reach.causal_changes import CHANGES, NOT_TRIED
from reach.shrunk import tiny_config
from reach.trial import CHEAP
from vlm_lens import HookedVLM, VLMLensError
from vlm_lens.testing import conformance, level_of

_MOST = 1_000_000
INPUTS = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 11, 12]])}
INPUTS["attention_mask"] = torch.ones_like(INPUTS["input_ids"])


def types() -> dict[str, str]:
    """The types that are language models alone, in alphabetical order: type -> class."""
    return {
        name: cls if isinstance(cls, str) else cls[0]
        for name, cls in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())
        if name in CONFIG_MAPPING
    }


def made(model_type: str) -> nn.Module:
    """A model of a type, as transformers makes it."""
    if types()[model_type] == TYPES.get(model_type):  # it reads pictures too
        return pictured(model_type)
    config = tiny_config(model_type, CHANGES.get(model_type))
    cls = getattr(transformers, types()[model_type])
    # of a model of several, the text model alone, as `AutoModelForCausalLM` takes it
    own = isinstance(config, cls.config_class)
    return cls(config if own else config.get_text_config(decoder=True))


def build(model_type: str) -> nn.Module:
    """A model of a type, with weights that make every part matter."""
    return tiny.randomize(made(model_type))


def tried(model_type: str) -> tuple[str, str]:
    """The level of a type, and why it is refused or what is wrong with it."""
    if model_type in NOT_TRIED:
        return "not built", NOT_TRIED[model_type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in made(model_type).parameters())
            model = build(model_type) if size < _MOST else None
        except Exception as error:  # noqa: BLE001  a default config made small may not fit
            return "not built", f"{type(error).__name__}: {error}"
        if model is None:
            return "not built", "too large when made small"
        try:
            vlm = HookedVLM(model)
            report = conformance(vlm, vlm.as_prompt(INPUTS), cold=False, only=CHEAP)
        except VLMLensError as error:
            return "refused", str(error).split(" Describe ")[0]
        failed = "; ".join(f"{r.name}: {r.detail}" for r in report.failures)
        return ("fails" if failed else level_of(vlm)), failed
