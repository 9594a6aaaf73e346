"""How a worker gets the model: it is sent as it is now, or loaded again under its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_lens.distributed.packed import dropped_hook
from vlm_lens.distributed.refusal import DistributedError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.storage.identity import model_settings, processor_digest
from vlm_lens.storage.weights import is_plain, is_slice, weights_digest

_LOAD = "give Ray(load=True), with which each worker loads the model under its name"


@dataclass(frozen=True, eq=False)
class SentModel:
    """A model with its weights, as they are now."""

    kind: type[HookedModel]
    hf_model: Any = field(repr=False)
    processor: Any = field(repr=False)
    name: str = ""

    def make(self) -> HookedModel:
        """The model, in a worker."""
        _settle(self.hf_model)
        vlm = self.kind(self.hf_model, self.processor)
        vlm.__dict__["name"] = self.name
        return vlm


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model under the name that it was loaded by, and what tells that it is the same."""

    kind: Any
    name: str
    options: Mapping[str, Any]
    identity: Mapping[str, str]

    @property
    def n_gpus(self) -> int:
        """How many GPUs it names by their numbers."""
        return len(_named_gpus(self.options))

    def make(self) -> HookedModel:
        """The model, loaded in a worker.

        Raises:
            DistributedError: What was loaded is another model.
        """
        vlm = self.kind.from_pretrained(self.name, **self.options)
        other = [k for k, v in _identity(vlm).items() if self.identity[k] != v]
        if other:
            raise DistributedError(
                f"A worker loaded {self.name!r}, and its {' and '.join(other)} differ from your "
                "model's: it was changed after it was loaded, or another is there under this name. "
                "Leave load=True out, so that the model is sent as it is."
            )
        return vlm


def sent(vlm: HookedModel) -> SentModel:
    """A model as it is, to be sent to workers.

    Raises:
        DistributedError: Weights that are not plain tensors of one device.
    """
    model = vlm.hf_model
    if getattr(model, "hf_quantizer", None) is not None:
        raise DistributedError(f"Quantised weights are not sent: {_LOAD}.")
    devices = set()
    for name, weight in model.named_parameters():
        if weight.device.type == "meta":
            raise DistributedError(f"{name} is offloaded, and cannot be sent: {_LOAD}.")
        if not is_plain(weight.data) or is_slice(weight):
            raise DistributedError(f"{name} is no plain tensor, and cannot be sent: {_LOAD}.")
        devices.add(weight.device)
    if len(devices) > 1:
        raise DistributedError(f"The model lies on {len(devices)} devices: {_LOAD}.")
    return SentModel(type(vlm), model, vlm.processor, vlm.name)


def named(vlm: HookedModel) -> NamedModel:
    """A model that workers load again.

    Raises:
        DistributedError: It was not loaded by `from_pretrained`.
    """
    loaded = vlm.__dict__.get("loaded_as")
    if loaded is None:
        raise DistributedError(
            "load=True has workers load the model under its name, and this one was not loaded by "
            "HookedVLM.from_pretrained: load it so, or leave load=True out."
        )
    name, options = loaded
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    return NamedModel(type(vlm), name, _in_a_worker(options, vlm), _identity(vlm))


def _in_a_worker(options: Mapping[str, Any], vlm: HookedModel) -> dict[str, Any]:
    """How a worker loads the model, whose GPUs are its own and numbered from 0."""
    numbers = {n: i for i, n in enumerate(_named_gpus(options))}

    def moved(where: Any) -> Any:
        return where if (n := _gpu(where)) is None else f"cuda:{numbers[n]}"

    found, spread = dict(options), options.get("device_map")
    if isinstance(spread, Mapping):
        found["device_map"] = {path: moved(where) for path, where in spread.items()}
    elif spread is not None:
        found["device_map"] = moved(spread)
    elif getattr(vlm.hf_model, "hf_quantizer", None) is None:  # put where it computes now
        kind = torch.device(vlm.device).type
        found["device"] = kind if kind != "cpu" or options.get("device") is not None else None
    if isinstance(most := options.get("max_memory"), Mapping):
        found["max_memory"] = {
            k if (n := _gpu(k)) is None else numbers[n]: v for k, v in most.items()
        }
    return found


def _named_gpus(options: Mapping[str, Any]) -> list[int]:
    """The numbers of the GPUs that are named where a model is loaded on several devices."""
    spread, most = options.get("device_map"), options.get("max_memory")
    named = list(spread.values()) if isinstance(spread, Mapping) else [spread]
    named += list(most) if isinstance(most, Mapping) else []
    return sorted({n for where in named if (n := _gpu(where)) is not None})


def _gpu(where: Any) -> int | None:
    """The number of the GPU that something means, if it means one by its number."""
    if isinstance(where, int) and not isinstance(where, bool):
        return where
    if isinstance(where, torch.device) or (isinstance(where, str) and where.startswith("cuda:")):
        return torch.device(where).index if torch.device(where).type == "cuda" else None
    return None


def _identity(vlm: HookedModel) -> dict[str, str]:
    return {
        "weights": str(weights_digest(vlm.hf_model, exact=True)),
        "settings": model_settings(vlm.hf_model),
        "processor": processor_digest(vlm.processor),
    }


def _settle(model: nn.Module) -> None:
    """Has transformers know a model that was not made in this process.

    What a class can record, such as the hidden states that LLaVA reads of its tower, stands in a
    table that its constructor fills. The hooks that record stayed where the model comes from: the
    next run puts on new ones.
    """
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if hook is dropped_hook:
                del module._forward_hooks[key]
        module.__dict__.pop("_output_capturing_hooks_installed", None)
        if isinstance(module, PreTrainedModel):
            _CAN_RECORD_REGISTRY[module] = module._can_record_outputs


def gpus_of(vlm: HookedModel) -> int:
    """On how many GPUs a model computes."""
    places = [*(getattr(vlm.hf_model, "hf_device_map", None) or {}).values(), vlm.device]
    devices = {p.device for p in vlm.hf_model.parameters()}
    devices |= {torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
                for where in places if where != "disk"}  # fmt: skip
    return len({device.index or 0 for device in devices if device.type == "cuda"})


__all__ = ["NamedModel", "SentModel", "gpus_of", "named", "sent"]
