"""Digests of what numbers depend on beside weights: a model's settings, processors, libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from vlm_lens.storage.fingerprint import fingerprint
from vlm_lens.version import __version__

# what a model or a processor notes of where it comes from: no number depends on it
_PROVENANCE = frozenset(
    ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "_from_auto",
     "tokenizer_file", "vocab_file", "processor_class")
)  # fmt: skip
# what a module notes for itself while it runs
_NOTED_IN_RUNS = frozenset(
    ("max_seq_len_cached", "gradient_checkpointing", "loss_type", "all_tied_weights_keys")
)
_ADAPTERS = frozenset(("_disable_adapters", "_active_adapter"))


def library_versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of vlm_lens and of libraries; None of one that is not installed."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {"vlm_lens": __version__, **{name: installed(name) for name in names}}


def model_settings(model: nn.Module) -> str:
    """A digest of what a model computes with beside its weights, as it is now.

    Class, config, generation config, attention implementation, plain attributes of every module
    (adapters on or off, scales), replaced forwards and hooks, train or eval mode, autocast.
    """
    config = getattr(model, "config", None)
    generation = getattr(model, "generation_config", None)
    device = next((p.device.type for p in model.parameters()), "cpu")
    return fingerprint(
        type(model).__qualname__,
        _without_provenance(config.to_dict()) if hasattr(config, "to_dict") else None,
        _without_provenance(generation.to_dict()) if hasattr(generation, "to_dict") else None,
        list(_attentions(config)),
        [
            (name, facts)
            for name, module in model.named_modules()
            if (facts := module_settings(module))
        ],
        torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device)),
        torch.get_float32_matmul_precision(),
    )


def processor_digest(processor: Any) -> str:
    """A digest of how texts and pictures become tensors, and ids become texts.

    Args:
        processor: A processor, a tokenizer, or None.
    """
    if processor is None:
        return "none"
    tokenizer = getattr(processor, "tokenizer", None) or processor
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    templates = [getattr(one, "chat_template", None) for one in (processor, tokenizer)]
    special = getattr(tokenizer, "special_tokens_map", None)
    return fingerprint(_without_provenance(settings), _tokens(tokenizer), special, templates)


def _tokens(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    tokens = json.loads(backend.to_str())
    for left in ("padding", "truncation"):  # set anew by every call
        tokens.pop(left, None)
    return tokens


def _without_provenance(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_provenance(v) for k, v in value.items() if k not in _PROVENANCE}
    if isinstance(value, list | tuple):
        return [_without_provenance(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _attentions(config: Any) -> Iterator[tuple[str, Any]]:
    yield type(config).__name__, getattr(config, "_attn_implementation", None)
    for name in getattr(config, "sub_configs", None) or ():
        if (inner := getattr(config, name, None)) is not None:
            yield from _attentions(inner)


def module_settings(module: nn.Module) -> dict[str, Any]:
    """What stands in a module beside tensors and other modules, hooks of others included."""
    found: dict[str, Any] = {}
    left_out = _NOTED_IN_RUNS | _PROVENANCE | {"training", "forward"}
    for name, value in vars(module).items():
        if name in left_out or (name.startswith("_") and name not in _ADAPTERS):
            continue
        if value is not None and _is_plain(value):
            found[name] = value
    if module.training:
        found["training"] = True
    return found | changes_of_others(module)


def changes_of_others(module: nn.Module) -> dict[str, Any]:
    """What others put on a module to change what it computes: a forward of its own, hooks."""
    own = vars(module)
    if not (module._forward_hooks or module._forward_pre_hooks or "forward" in own):
        return {}  # at once, as on most modules: asked of each in every sweep
    found: dict[str, Any] = {}
    if "forward" in own and not hasattr(module, "_hf_hook"):  # accelerate's moves only
        found["forward"] = own["forward"]
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        if hooks := [h for h in getattr(module, kind).values() if not _of_transformers(h)]:
            found[kind] = hooks
    return found


def _of_transformers(hook: Any) -> bool:
    """Whether transformers put it on, as it does in the first run that asks for hidden states."""
    return (getattr(hook, "__module__", None) or "").split(".")[0] == "transformers"


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)


__all__ = [
    "changes_of_others",
    "library_versions",
    "model_settings",
    "module_settings",
    "processor_digest",
]
